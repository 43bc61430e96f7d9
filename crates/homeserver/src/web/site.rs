//! The files of a folder, by name, with what is known of their content. Read as a whole, never changed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::headers::{self, Policy, accepts, content_type, is_named_by_content};

/// More is no web client, but perhaps somebody's home.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 16;
/// Only smaller pages are searched for scripts of their own.
const MAX_PAGE_BYTES: u64 = 1 << 20;

const CONFIG: &str = "config.json";
const INDEX: &str = "index.html";

pub(super) struct Site {
    pages: HashMap<String, Page>,
    index: Page,
}

/// What is sent for a name.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) content_type: HeaderValue,
    /// Whether other content would have another name.
    pub(super) named_by_content: bool,
    /// What a browser may do with it.
    pub(super) policy: HeaderValue,
    plain: Content,
    /// The same, smaller; the best one first.
    encoded: Vec<(Encoding, Content)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Encoding {
    Brotli,
    Gzip,
}

#[derive(Clone)]
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) etag: HeaderValue,
    pub(super) stored: Stored,
}

#[derive(Clone)]
pub(super) enum Stored {
    Memory(Bytes),
    File(StoredFile),
}

/// A file as it was when it was read.
#[derive(Clone)]
pub(super) struct StoredFile {
    pub(super) path: PathBuf,
    pub(super) modified: SystemTime,
}

impl Encoding {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Gzip => ".gz",
        }
    }
}

impl Page {
    /// The content in the best encoding that the client takes.
    pub(super) fn content_for(&self, headers: &HeaderMap) -> (&Content, Option<Encoding>) {
        match self.encoded.iter().find(|(encoding, _)| accepts(headers, encoding.name())) {
            Some((encoding, content)) => (content, Some(*encoding)),
            None => (&self.plain, None),
        }
    }

    pub(super) fn has_encodings(&self) -> bool {
        !self.encoded.is_empty()
    }
}

impl Site {
    /// Reads a folder that holds at least an `index.html`. The `config.json` in it, if any, gives way to ours.
    pub(super) fn read(dir: &Path, policy: &Policy, config_json: Bytes) -> io::Result<Self> {
        let root = dir.canonicalize()?;
        let mut found = BTreeMap::new();
        walk(&root, &root, "", 0, &mut found)?;
        let mut pages = HashMap::new();
        for (name, path) in &found {
            // Encoded files are not files of their own.
            let is_encoded = |encoding: Encoding| {
                name.strip_suffix(encoding.suffix()).is_some_and(|plain| found.contains_key(plain))
            };
            if !is_encoded(Encoding::Brotli) && !is_encoded(Encoding::Gzip) {
                pages.insert(name.clone(), page(name, path, &found, policy)?);
            }
        }
        pages.insert(CONFIG.to_owned(), in_memory(CONFIG, config_json, policy));
        let index = pages.get(INDEX).cloned();
        let index = index.ok_or_else(|| io::Error::other(format!("there is no {INDEX} in it")))?;
        Ok(Self { pages, index })
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn index(&self) -> &Page {
        &self.index
    }

    /// A page deep in the client asks for WebAssembly beside itself, but that lies at the top.
    pub(super) fn find(&self, name: &str) -> Option<&Page> {
        let at_the_top = || name.rsplit('/').next().filter(|last| last.ends_with(".wasm"));
        self.pages.get(name).or_else(|| self.pages.get(at_the_top()?))
    }
}

/// Finds the files of a folder. Names that begin with a dot are none of ours; links lead to files inside of `root`, or
/// nowhere.
fn walk(root: &Path, dir: &Path, prefix: &str, depth: usize, found: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("it is nested deeper than {MAX_DEPTH} folders")));
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let (name, mut path) = (format!("{prefix}{name}"), entry.path());
        let mut kind = entry.file_type()?;
        if kind.is_symlink() {
            path = match path.canonicalize() {
                Ok(path) if path.starts_with(root) => path,
                _ => {
                    tracing::warn!(name, "a link that leads out of the web client's folder, or nowhere, is left out");
                    continue;
                }
            };
            kind = path.symlink_metadata()?.file_type();
        } else if kind.is_dir() {
            walk(root, &path, &format!("{name}/"), depth + 1, found)?;
        }
        if kind.is_file() {
            found.insert(name, path);
        }
        if found.len() > MAX_FILES {
            return Err(io::Error::other(format!("it has more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

fn page(name: &str, path: &Path, found: &BTreeMap<String, PathBuf>, policy: &Policy) -> io::Result<Page> {
    let plain = stored_file(path, "")?;
    let content_type = content_type(name);
    let is_html = content_type.as_bytes().starts_with(b"text/html");
    let scripts = match is_html && plain.size <= MAX_PAGE_BYTES {
        true => headers::inline_scripts(&String::from_utf8_lossy(&fs::read(path)?)),
        false => Vec::new(),
    };
    let mut encoded = Vec::new();
    for encoding in [Encoding::Brotli, Encoding::Gzip] {
        if let Some(path) = found.get(&format!("{name}{}", encoding.suffix())) {
            encoded.push((encoding, stored_file(path, encoding.name())?));
        }
    }
    Ok(Page {
        content_type,
        named_by_content: !is_html && is_named_by_content(name),
        policy: policy.with_scripts(&scripts),
        plain,
        encoded,
    })
}

fn in_memory(name: &str, bytes: Bytes, policy: &Policy) -> Page {
    Page {
        content_type: content_type(name),
        named_by_content: false,
        policy: policy.with_scripts(&[]),
        plain: Content { size: bytes.len() as u64, etag: etag(xxh3_128(&bytes), ""), stored: Stored::Memory(bytes) },
        encoded: Vec::new(),
    }
}

/// Reads a file through, for its tag. The time of a file would not do for that: in images all files have the same.
fn stored_file(path: &Path, encoding: &str) -> io::Result<Content> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else { break };
        hasher.update(part);
        size += part.len() as u64;
    }
    let stored = StoredFile { path: path.to_owned(), modified: metadata.modified()? };
    Ok(Content { size, etag: etag(hasher.digest128(), encoding), stored: Stored::File(stored) })
}

/// Another encoding is another representation, and has another tag.
fn etag(hash: u128, encoding: &str) -> HeaderValue {
    let separator = if encoding.is_empty() { "" } else { "-" };
    HeaderValue::from_str(&format!("\"{hash:032x}{separator}{encoding}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
