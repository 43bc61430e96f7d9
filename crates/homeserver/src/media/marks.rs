//! What administrators say of uploads: that nobody is to get one, or that it must not be taken away like that.

use store::Read;

use super::{Media, MediaId, unknown_media};
use crate::error::Result;
use crate::schema::{self, MEDIA_MARKS, MediaMarks};

/// What was said of an upload.
pub fn of(read: &impl Read, media_id: &MediaId) -> Result<MediaMarks> {
    Ok(read.get(&MEDIA_MARKS, media_id.as_str())?.unwrap_or_default())
}

impl Media {
    /// Lets nobody have an upload any more, unless it is protected. Says whether that changed anything.
    pub async fn quarantine(&self, media_id: &MediaId, by: &str) -> Result<bool> {
        self.mark(media_id, |marks| {
            if !marks.protected && marks.quarantined_by.is_none() {
                marks.quarantined_by = Some(by.to_owned());
            }
        })
        .await
    }

    /// Lets users have it again.
    pub async fn release(&self, media_id: &MediaId) -> Result<bool> {
        self.mark(media_id, |marks| marks.quarantined_by = None).await
    }

    /// Says whether an upload can be quarantined from now on.
    pub async fn protect(&self, media_id: &MediaId, protected: bool) -> Result<bool> {
        self.mark(media_id, |marks| marks.protected = protected).await
    }

    async fn mark(&self, media_id: &MediaId, change: impl Fn(&mut MediaMarks) + Send + Sync) -> Result<bool> {
        let marked = self
            .store
            .transact(|tx| {
                if !tx.contains(&schema::MEDIA, media_id.as_str())? {
                    return Err(unknown_media());
                }
                let before = tx.get(&MEDIA_MARKS, media_id.as_str())?.unwrap_or_default();
                let mut marks = before.clone();
                change(&mut marks);
                if marks == MediaMarks::default() {
                    tx.delete(&MEDIA_MARKS, media_id.as_str());
                } else {
                    tx.put(&MEDIA_MARKS, media_id.as_str(), &marks);
                }
                Ok(marks != before)
            })
            .await?;
        Ok(marked.value)
    }
}
