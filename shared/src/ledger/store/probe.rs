//! The test that a store keeps its word. Some that are compatible with S3 ignore `If-Match` or
//! `If-None-Match`, and some refuse one of them always.

use uuid::Uuid;

use super::StoreError;
use super::bucket::{Bucket, If, Put};

/// Well-formed, and no object's.
const WRONG_TAG: &str = "\"00000000000000000000000000000000\"";

/// Makes an object of its own, changes it where that is allowed and where it is not, and removes it.
///
/// # Errors
/// The store does not do as it should; or it cannot be reached, or refuses.
pub(super) async fn probe(bucket: &Bucket) -> Result<(), StoreError> {
    let name = format!("probe/{}", Uuid::new_v4());
    let probed = try_all(bucket, &name).await;
    let deleted = bucket.delete(&name).await;
    probed.and(deleted)
}

async fn try_all(bucket: &Bucket, name: &str) -> Result<(), StoreError> {
    // Who may not list a bucket is denied to read what is not there.
    bucket.get(name).await?;
    let broken = |what: &str| Err(bucket.error(format!("cannot keep a ledger: it {what}")));
    if !is_stored(bucket, name, If::Absent).await? {
        return broken("refuses to create an object with If-None-Match");
    }
    if is_stored(bucket, name, If::Absent).await? {
        return broken("ignores If-None-Match: it creates an object that is there already");
    }
    let Some(found) = bucket.get(name).await? else {
        return broken("does not show an object that it has just stored");
    };
    if is_stored(bucket, name, If::Tag(WRONG_TAG)).await? {
        return broken("ignores If-Match: it changes an object that was changed meanwhile");
    }
    if !is_stored(bucket, name, If::Tag(&found.tag)).await? {
        return broken("refuses to change an object with If-Match");
    }
    Ok(())
}

async fn is_stored(bucket: &Bucket, name: &str, on: If<'_>) -> Result<bool, StoreError> {
    match bucket.put(name, b"{}".to_vec(), on).await? {
        Put::Stored(_) => Ok(true),
        Put::Refused => Ok(false),
        Put::Unclear(reason) => Err(bucket.unreachable(&reason)),
    }
}
