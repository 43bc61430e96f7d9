//! The media repository: uploads, downloads, thumbnails. A row in the store says what a file is and whose; the bytes
//! lie on the disk under their hash, so that the same file uploaded twice is kept once.
//!
//! A row is committed after its file is durable, and a file is removed after its last row is gone: there is never a
//! row without a file.
//!
//! - `mxc.rs`: media IDs. `headers.rs`: what is said about a file when it is sent.
//! - `usage.rs`: how much each user has.
//! - `files.rs`: the disk. `thumbnail.rs`: pictures, without the store or the disk.
//! - here: the rows, and how both stay together.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::store::{Read, Store, Tx, limits};
use http::StatusCode;
use parking_lot::Mutex;
use ruma::UserId;
use tokio::sync::{Mutex as AsyncMutex, OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config;
use crate::error::{Error, ErrorCode, Result};
use crate::rng::Rng;
use crate::schema::{self, topic};

pub mod files;
pub mod headers;
pub mod ledger;
pub mod marks;
pub mod mxc;
pub mod thumbnail;
pub mod usage;

pub use files::{Files, Incoming, Placed, Reading, SecondName, Sha256};
pub use mxc::MediaId;
pub use thumbnail::{Ask, Method};

/// How long a place stays reserved for an upload.
const UNUSED_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Nobody waits longer than this for somebody else's upload.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked whether a file of doubt has a row.
const DOUBT: Duration = Duration::from_secs(5);
/// Pictures that are made smaller at the same time.
const THUMBNAILERS: usize = 2;
/// All that are decoded at the same time together have no more pixels than the largest one may have.
const PIXELS_PER_PERMIT: u64 = 1024;
/// How many odd sizes of one picture are kept; more are made again each time.
const MAX_THUMBNAILS: usize = 64;
/// Decoders read whole files into memory.
const MAX_PICTURE_BYTES: u64 = 64 << 20;

pub struct Media {
    store: Store,
    dir: PathBuf,
    files: OnceCell<Files>,
    clock: Clock,
    rng: Rng,
    shutdown: CancellationToken,
    settings: config::Media,
    thumbnailers: Semaphore,
    /// Pixels being decoded.
    canvas: Semaphore,
    /// One at a time makes one thumbnail; the others wait and find it made.
    making: Mutex<Making>,
}

type Making = HashMap<(Sha256, schema::ThumbnailKey), Weak<AsyncMutex<()>>>;

/// What an upload says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub content_type: Option<String>,
    pub filename: Option<String>,
}

/// A place for a later upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub media_id: MediaId,
    pub unused_expires_ts: u64,
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub sha256: Sha256,
    pub size_bytes: u64,
    pub created_ts: u64,
    pub about: About,
}

/// A picture to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    pub sha256: Sha256,
    pub size_bytes: u64,
    pub content_type: String,
}

/// A picture of a preview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub media_id: MediaId,
    pub content_type: &'static str,
    pub width: u32,
    pub height: u32,
    pub size_bytes: u64,
}

impl Media {
    pub fn new(store: Store, settings: &config::Config, clock: Clock, rng: Rng, shutdown: CancellationToken) -> Self {
        let canvas = permits(settings.media.max_thumbnail_pixels);
        Self {
            store,
            dir: settings.media_dir(),
            files: OnceCell::new(),
            clock,
            rng,
            shutdown,
            settings: settings.media.clone(),
            thumbnailers: Semaphore::new(THUMBNAILERS),
            canvas: Semaphore::new(canvas as usize),
            making: Mutex::default(),
        }
    }

    /// Makes the media directory if it is not there, and clears away what an earlier run left unfinished. Happens with
    /// the first file at the latest; a server calls it at its start, so that a wrong directory is noticed then.
    pub async fn start(&self) -> io::Result<()> {
        self.opened().await.map(drop)
    }

    async fn files(&self) -> Result<&Files> {
        self.opened().await.map_err(|cause| {
            Error::internal(format!("the media directory {} cannot be used: {cause}", self.dir.display()))
        })
    }

    async fn opened(&self) -> io::Result<&Files> {
        let open = async || {
            let (dir, rng, store) = (self.dir.clone(), self.rng.clone(), self.store.clone());
            let wanted = move |sha256: &Sha256| is_wanted(&store, sha256);
            let keep_free = limits::DISK_RESERVE_BYTES.saturating_add(self.settings.min_free.get());
            files::blocking(move || Files::open(&dir, rng, keep_free, wanted)).await
        };
        self.files.get_or_try_init(open).await
    }

    /// The largest upload, in bytes.
    pub fn max_upload(&self) -> u64 {
        self.settings.max_upload.get()
    }

    /// Whether there is room for so many bytes of a user: on the disk, and in what the user may take up. Asked before a
    /// file is received; while it is, and when it is kept, that is asked again.
    pub async fn check_room(&self, user_id: &UserId, bytes: u64) -> Result<()> {
        let most = self.most();
        if most > 0 {
            usage::check(usage::of(&self.store.snapshot(), user_id.as_str())?.with(bytes), most)?;
        }
        let files = self.files().await?.clone();
        files::blocking(move || files.check_space(bytes)).await.map_err(disk_error)
    }

    /// A file to receive an upload into. There is none while the store could not keep its row.
    pub async fn incoming(&self) -> Result<Incoming> {
        self.store.health()?;
        Ok(self.files().await?.incoming())
    }

    // ---- uploading -----------------------------------------------------------------------------------------------

    /// Keeps a new upload.
    pub async fn add(&self, user_id: &UserId, placed: Placed, about: &About) -> Result<MediaId> {
        let media_id = MediaId::random(&self.rng);
        let row = self.row(user_id, &placed, about);
        let committed = self.store.transact(|tx| put_new(tx, &media_id, &row, self.most())).await;
        self.settle(placed, committed).await?;
        Ok(media_id)
    }

    /// Keeps a picture that was fetched for a preview, once however often it is fetched. `None`: it is no picture that
    /// clients get to see, there is no room for it, or an administrator took it away.
    pub async fn add_preview(&self, user_id: &UserId, bytes: Vec<u8>) -> Result<Option<Picture>> {
        let bounds = thumbnail::Bounds { max_pixels: self.settings.max_thumbnail_pixels };
        let Ok((format, (width, height))) = thumbnail::measure(io::Cursor::new(&bytes), bounds) else {
            return Ok(None);
        };
        if let Err(error) = self.check_room(user_id, bytes.len() as u64).await {
            tracing::debug!(%error, "no room for the picture of a preview");
            return Ok(None);
        }
        let content_type = format.to_mime_type();
        let placed = self.files().await?.put(bytes).await.map_err(disk_error)?;
        let (media_id, size_bytes) = (MediaId::of_preview(&placed.sha256), placed.size_bytes);
        let about = About { content_type: Some(content_type.to_owned()), filename: None };
        let row = self.row(user_id, &placed, &about);
        let put_once = |tx: &mut Tx| {
            let known = tx.contains(&schema::MEDIA, media_id.as_str())?;
            if known { Ok(()) } else { put(tx, &media_id, &row, self.most()) }
        };
        let committed = self.store.transact(put_once).await;
        self.settle(placed, committed).await?;
        let shown = self.is_shown(&media_id)?;
        Ok(shown.then_some(Picture { media_id, content_type, width, height, size_bytes }))
    }

    /// Whether a file is there to be seen.
    pub fn is_shown(&self, media_id: &MediaId) -> Result<bool> {
        match self.look(media_id) {
            Ok(found) => Ok(found.is_some()),
            Err(error) if error.status() == StatusCode::NOT_FOUND => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps a place for an upload that comes later.
    pub async fn reserve(&self, user_id: &UserId) -> Result<Reserved> {
        let media_id = MediaId::random(&self.rng);
        let now = self.clock.now_ms();
        let unused_expires_ts = now.saturating_add(UNUSED_LIFETIME.as_millis() as u64);
        let row = schema::Media {
            user_id: user_id.to_string(),
            created_ts: now,
            unused_expires_ts: Some(unused_expires_ts),
            ..schema::Media::default()
        };
        let limit = self.settings.max_pending_uploads as usize;
        self.store
            .transact(|tx| {
                let pending = forget_expired(tx, user_id, now)?;
                if pending.count >= limit {
                    let wait = Duration::from_millis(pending.first_expires_ts.saturating_sub(now));
                    return Err(Error::limit_exceeded(wait));
                }
                tx.put(&schema::PENDING_MEDIA, (user_id.as_str(), media_id.as_str()), &unused_expires_ts);
                put_new(tx, &media_id, &row, self.most())
            })
            .await?;
        Ok(Reserved { media_id, unused_expires_ts })
    }

    /// May this user upload to this place? Asked before the file is received, and again when it is kept.
    pub fn check_reserved(&self, user_id: &UserId, media_id: &MediaId) -> Result<()> {
        reserved(&self.store.snapshot(), user_id, media_id, self.clock.now_ms())
    }

    /// Keeps the upload that a place was reserved for.
    pub async fn fill(&self, user_id: &UserId, media_id: &MediaId, placed: Placed, about: &About) -> Result<()> {
        let row = self.row(user_id, &placed, about);
        let committed = self
            .store
            .transact(|tx| {
                reserved(tx, user_id, media_id, self.clock.now_ms())?;
                tx.delete(&schema::PENDING_MEDIA, (user_id.as_str(), media_id.as_str()));
                put(tx, media_id, &row, self.most())
            })
            .await;
        self.settle(placed, committed).await.map(drop)
    }

    /// What one user may take up.
    fn most(&self) -> u64 {
        self.settings.max_user_total.get()
    }

    fn row(&self, user_id: &UserId, placed: &Placed, about: &About) -> schema::Media {
        schema::Media {
            user_id: user_id.to_string(),
            created_ts: self.clock.now_ms(),
            sha256: Some(placed.sha256),
            size_bytes: placed.size_bytes,
            content_type: about.content_type.clone(),
            filename: about.filename.clone(),
            unused_expires_ts: None,
        }
    }

    /// Lets go of a file; removes it if no row came of it. A commit that failed on its way to the disk may have got there
    /// all the same: that is found out as soon as the store knows, or by the next start.
    async fn settle<T>(&self, placed: Placed, committed: Result<T>) -> Result<T> {
        let sha256 = placed.sha256;
        let second_name = placed.release();
        match &committed {
            Ok(_) => second_name.remove(),
            Err(_) => {
                let doubt =
                    Doubt { files: self.files().await?.clone(), store: self.store.clone(), sha256, second_name };
                if let Err(doubt) = doubt.resolve().await {
                    let (clock, shutdown) = (self.clock.clone(), self.shutdown.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = doubt.resolve_later(&clock) => {}
                            () = shutdown.cancelled() => {}
                        }
                    });
                }
            }
        }
        committed
    }

    // ---- downloading ---------------------------------------------------------------------------------------------

    /// Finds a file. If it is announced but not uploaded yet, waits for it.
    pub async fn find(&self, media_id: &MediaId, wait: Duration) -> Result<Found> {
        if let Some(found) = self.look(media_id)? {
            return Ok(found);
        }
        let signal = self.store.hub().signal();
        let topic = topic::media(media_id.as_str());
        self.store.hub().attach(topic.clone(), &signal);
        let arrived = async {
            loop {
                let seen = self.store.tip();
                if let Some(found) = self.look(media_id)? {
                    return Ok(found);
                }
                signal.changed(seen, signal.nudges()).await;
            }
        };
        let outcome = tokio::select! {
            outcome = arrived => outcome,
            () = self.clock.sleep(wait.min(MAX_WAIT)) => Err(not_yet_uploaded()),
            () = self.shutdown.cancelled() => Err(not_yet_uploaded()),
        };
        self.store.hub().detach(&topic, &signal);
        outcome
    }

    /// `None`: announced, but not uploaded yet.
    fn look(&self, media_id: &MediaId) -> Result<Option<Found>> {
        let read = self.store.snapshot();
        let row = read.get(&schema::MEDIA, media_id.as_str())?.ok_or_else(unknown_media)?;
        if marks::of(&read, media_id)?.quarantined_by.is_some() {
            return Err(unknown_media());
        }
        let Some(sha256) = row.sha256 else {
            return if expired(&row, self.clock.now_ms()) { Err(unknown_media()) } else { Ok(None) };
        };
        let about = About { content_type: row.content_type, filename: row.filename };
        Ok(Some(Found { sha256, size_bytes: row.size_bytes, created_ts: row.created_ts, about }))
    }

    /// Opens a file and reads the first piece.
    pub async fn read(&self, sha256: Sha256, from: u64, to: u64) -> Result<Reading> {
        self.files().await?.read(sha256, from, to).await.map_err(|error| match error.kind() {
            // It was deleted since its row was read.
            io::ErrorKind::NotFound => unknown_media(),
            _ => Error::internal(error),
        })
    }

    // ---- thumbnails ----------------------------------------------------------------------------------------------

    /// A smaller picture, from the cache or made now. Runs to its end better than half: spawn it.
    pub async fn thumbnail(&self, source: &Found, ask: Ask) -> Result<Thumbnail> {
        let key = thumbnail_key(ask);
        if let Some(kept) = self.kept_thumbnail(source, key)? {
            return Ok(kept);
        }
        let turn = self.turn(source.sha256, key);
        let _turn = turn.lock().await;
        if let Some(kept) = self.kept_thumbnail(source, key)? {
            return Ok(kept);
        }
        match self.make(source, ask).await? {
            thumbnail::Made::Original { content_type } => {
                let made = Thumbnail {
                    sha256: source.sha256,
                    size_bytes: source.size_bytes,
                    content_type: content_type.to_owned(),
                };
                self.keep_thumbnail(source, key, &made).await?;
                Ok(made)
            }
            thumbnail::Made::Smaller { bytes, content_type } => {
                let placed = self.files().await?.put(bytes).await.map_err(disk_error)?;
                let made = Thumbnail {
                    sha256: placed.sha256,
                    size_bytes: placed.size_bytes,
                    content_type: content_type.to_owned(),
                };
                let kept = self.keep_thumbnail(source, key, &made).await;
                self.settle(placed, kept).await?;
                Ok(made)
            }
        }
    }

    /// The lock of one thumbnail.
    fn turn(&self, sha256: Sha256, key: schema::ThumbnailKey) -> Arc<AsyncMutex<()>> {
        let mut making = self.making.lock();
        if let Some(turn) = making.get(&(sha256, key)).and_then(Weak::upgrade) {
            return turn;
        }
        making.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(AsyncMutex::new(()));
        making.insert((sha256, key), Arc::downgrade(&turn));
        turn
    }

    fn kept_thumbnail(&self, source: &Found, key: schema::ThumbnailKey) -> Result<Option<Thumbnail>> {
        let kept = self.store.snapshot().get(&schema::THUMBNAILS, (&source.sha256, key))?;
        Ok(kept.map(|row| Thumbnail { sha256: row.sha256, size_bytes: row.size_bytes, content_type: row.content_type }))
    }

    /// Makes a picture smaller, on a thread of its own, when it is its turn.
    async fn make(&self, source: &Found, ask: Ask) -> Result<thumbnail::Made> {
        if source.size_bytes > MAX_PICTURE_BYTES {
            return Err(thumbnail::Failure::TooLarge.into());
        }
        let closed = |_| Error::unavailable("The server is stopping");
        let _thumbnailer = self.thumbnailers.acquire().await.map_err(closed)?;
        let bounds = thumbnail::Bounds { max_pixels: self.settings.max_thumbnail_pixels };
        let (_, pixels) = self.with_picture(source, move |file| thumbnail::probe(file, bounds)).await?;
        let wanted = permits(pixels).min(permits(bounds.max_pixels));
        let _canvas = self.canvas.acquire_many(wanted).await.map_err(closed)?;
        self.with_picture(source, move |file| thumbnail::make(file, ask, bounds)).await
    }

    async fn with_picture<T: Send + 'static>(
        &self,
        source: &Found,
        work: impl FnOnce(BufReader<std::fs::File>) -> Result<T, thumbnail::Failure> + Send + 'static,
    ) -> Result<T> {
        let (files, sha256) = (self.files().await?.clone(), source.sha256);
        let work = tokio::task::spawn_blocking(move || work(BufReader::new(files.open_file(&sha256)?)));
        match work.await {
            Ok(outcome) => Ok(outcome?),
            // A decoder met something that its author did not think of.
            Err(failure) => Err(thumbnail::Failure::NotAPicture(failure.to_string()).into()),
        }
    }

    /// Remembers a thumbnail, unless the picture is gone meanwhile or has very many already.
    async fn keep_thumbnail(&self, source: &Found, key: schema::ThumbnailKey, made: &Thumbnail) -> Result<()> {
        let row = schema::Thumbnail {
            sha256: made.sha256,
            size_bytes: made.size_bytes,
            content_type: made.content_type.clone(),
        };
        self.store
            .transact(|tx| {
                let still_there = tx.first(&schema::MEDIA_FILES, schema::MEDIA_FILES.prefix((&source.sha256,)))?;
                let all = schema::THUMBNAILS.prefix((&source.sha256,));
                if still_there.is_none() || tx.unchecked().count(&schema::THUMBNAILS, all)? >= MAX_THUMBNAILS {
                    return Ok(());
                }
                tx.put(&schema::THUMBNAILS, (&source.sha256, key), &row);
                if made.sha256 != source.sha256 {
                    let user = thumbnail_name(&source.sha256, key);
                    tx.put(&schema::MEDIA_FILES, (&made.sha256, &user), &());
                }
                Ok::<_, Error>(())
            })
            .await
            .map(drop)
    }

    // ---- deleting ------------------------------------------------------------------------------------------------

    /// Deletes an upload, its thumbnails, and its file if no other upload is the same. False if there is none.
    pub async fn delete(&self, media_id: &MediaId) -> Result<bool> {
        let deleted = self.store.transact(|tx| delete_rows(tx, media_id)).await?;
        let Some(unused) = deleted.value else { return Ok(false) };
        self.collect(unused).await?;
        Ok(true)
    }

    /// The uploads of a user, for administrators: IDs in no particular order.
    pub fn uploads_of(&self, user_id: &UserId) -> Result<Vec<MediaId>> {
        let snapshot = self.store.snapshot();
        let all = snapshot.scan(&schema::USER_MEDIA, schema::USER_MEDIA.prefix((user_id.as_str(),)));
        let ids = all.keys().map(|key| Ok(MediaId::parse(&key?.1)));
        ids.filter_map(Result::transpose).collect()
    }

    /// Removes files that no row names any more.
    async fn collect(&self, files: Vec<Sha256>) -> Result<()> {
        let (all, store) = (self.files().await?.clone(), self.store.clone());
        let work = files::blocking(move || {
            for sha256 in &files {
                all.collect(sha256, |sha256| is_wanted(&store, sha256))?;
            }
            Ok(())
        });
        work.await.map_err(Error::internal)
    }
}

/// A file of which nobody knows yet whether a row names it.
struct Doubt {
    files: Files,
    store: Store,
    sha256: Sha256,
    second_name: SecondName,
}

impl Doubt {
    /// Removes the file if no row names it. Gives the doubt back where that is not known.
    async fn resolve(self) -> Result<(), Self> {
        let (files, store, sha256) = (self.files.clone(), self.store.clone(), self.sha256);
        let collect = move || files.collect(&sha256, |sha256| is_wanted(&store, sha256));
        match files::blocking(collect).await {
            Ok(()) => {
                self.second_name.remove();
                Ok(())
            }
            Err(_) => Err(self),
        }
    }

    async fn resolve_later(self, clock: &Clock) {
        let mut doubt = self;
        loop {
            clock.sleep(DOUBT).await;
            match doubt.resolve().await {
                Ok(()) => return,
                Err(still) => doubt = still,
            }
        }
    }
}

fn permits(pixels: u64) -> u32 {
    u32::try_from(pixels.div_ceil(PIXELS_PER_PERMIT).max(1)).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32)
}

// ---- rows --------------------------------------------------------------------------------------------------------

/// Whether a row names a file; an error while the store does not know.
fn is_wanted(store: &Store, sha256: &Sha256) -> io::Result<bool> {
    let named = schema::MEDIA_FILES.prefix((sha256,));
    let first = store.certain().and_then(|read| read.first(&schema::MEDIA_FILES, named));
    first.map(|first| first.is_some()).map_err(io::Error::other)
}

fn put_new(tx: &mut Tx, media_id: &MediaId, row: &schema::Media, most: u64) -> Result<()> {
    if tx.contains(&schema::MEDIA, media_id.as_str())? {
        return Err(Error::internal("a random media ID was given out before"));
    }
    put(tx, media_id, row, most)
}

/// Writes the row of an upload and what is found by it, if its user has not more than `most` bytes with it.
fn put(tx: &mut Tx, media_id: &MediaId, row: &schema::Media, most: u64) -> Result<()> {
    if row.sha256.is_some() {
        usage::add(tx, &row.user_id, row.size_bytes, most)?;
    }
    tx.put(&schema::MEDIA, media_id.as_str(), row);
    tx.put(&schema::USER_MEDIA, (&row.user_id, media_id.as_str()), &());
    if let Some(sha256) = &row.sha256 {
        tx.put(&schema::MEDIA_FILES, (sha256, media_id.as_str()), &());
    }
    Ok(())
}

fn reserved(read: &impl Read, user_id: &UserId, media_id: &MediaId, now: u64) -> Result<()> {
    let row = read.get(&schema::MEDIA, media_id.as_str())?.ok_or_else(unknown_media)?;
    if row.user_id != user_id.as_str() {
        return Err(Error::forbidden("Somebody else keeps this place"));
    }
    if row.sha256.is_some() {
        return Err(Error::conflict(ErrorCode::CannotOverwriteMedia, "There is a file already"));
    }
    if expired(&row, now) { Err(unknown_media()) } else { Ok(()) }
}

fn expired(row: &schema::Media, now: u64) -> bool {
    row.unused_expires_ts.is_some_and(|end| end <= now)
}

struct Pending {
    count: usize,
    first_expires_ts: u64,
}

/// Deletes the places that a user let expire; counts the others.
fn forget_expired(tx: &mut Tx, user_id: &UserId, now: u64) -> Result<Pending> {
    let mut pending = Pending { count: 0, first_expires_ts: u64::MAX };
    let all = schema::PENDING_MEDIA.prefix((user_id.as_str(),));
    for ((user_id, media_id), expires_ts) in tx.scan_guarded(&schema::PENDING_MEDIA, all)? {
        if expires_ts > now {
            pending.count += 1;
            pending.first_expires_ts = pending.first_expires_ts.min(expires_ts);
        } else {
            tx.delete(&schema::PENDING_MEDIA, (&user_id, &media_id));
            tx.delete(&schema::USER_MEDIA, (&user_id, &media_id));
            tx.delete(&schema::MEDIA, &media_id);
        }
    }
    Ok(pending)
}

/// Deletes the rows of an upload. `None` if there is none; otherwise the files that may be without rows now.
fn delete_rows(tx: &mut Tx, media_id: &MediaId) -> Result<Option<Vec<Sha256>>> {
    let Some(row) = tx.get(&schema::MEDIA, media_id.as_str())? else { return Ok(None) };
    tx.delete(&schema::MEDIA, media_id.as_str());
    tx.delete(&schema::MEDIA_MARKS, media_id.as_str());
    tx.delete(&schema::USER_MEDIA, (&row.user_id, media_id.as_str()));
    tx.delete(&schema::PENDING_MEDIA, (&row.user_id, media_id.as_str()));
    let Some(sha256) = row.sha256 else { return Ok(Some(Vec::new())) };
    usage::take_off(tx, &row.user_id, row.size_bytes)?;
    tx.delete(&schema::MEDIA_FILES, (&sha256, media_id.as_str()));
    let mut unused = vec![sha256];
    if tx.scan_guarded(&schema::MEDIA_FILES, schema::MEDIA_FILES.prefix((&sha256,)).limit(1))?.is_empty() {
        for ((_, key), made) in tx.scan_guarded(&schema::THUMBNAILS, schema::THUMBNAILS.prefix((&sha256,)))? {
            tx.delete(&schema::THUMBNAILS, (&sha256, key));
            tx.delete(&schema::MEDIA_FILES, (&made.sha256, &thumbnail_name(&sha256, key)));
            unused.push(made.sha256);
        }
    }
    Ok(Some(unused))
}

fn thumbnail_key(ask: Ask) -> schema::ThumbnailKey {
    let bits = u8::from(ask.method == Method::Crop) | u8::from(ask.animated) << 1;
    (ask.width, ask.height, bits)
}

/// Stands for a thumbnail where a media ID stands for an upload; no media ID looks like this.
fn thumbnail_name(source: &Sha256, (width, height, bits): schema::ThumbnailKey) -> String {
    format!("{}/{width}x{height}/{bits}", headers::hex(source))
}

/// What the disk says. A full one is not a mistake of the server.
pub fn disk_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            tracing::error!(%error, "no room for a file");
            Error::disk_full()
        }
        _ => Error::internal(error),
    }
}

fn unknown_media() -> Error {
    Error::not_found("There is no such media")
}

fn not_yet_uploaded() -> Error {
    Error::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::NotYetUploaded, "The file is not uploaded yet")
}

impl From<thumbnail::Failure> for Error {
    fn from(failure: thumbnail::Failure) -> Self {
        match failure {
            thumbnail::Failure::TooLarge => Error::too_large("The picture is too large to make a thumbnail of"),
            thumbnail::Failure::NotAPicture(reason) => {
                tracing::debug!(reason, "no thumbnail");
                Error::unknown("No thumbnail can be made of this file")
            }
            thumbnail::Failure::Io(error) if error.kind() == io::ErrorKind::NotFound => unknown_media(),
            thumbnail::Failure::Io(error) => Error::internal(error),
        }
    }
}
