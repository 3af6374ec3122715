//! The emulator's S3: buckets, and the ways in which a store can fail.

use std::time::Duration;

use super::{Aws, REGION};

impl Aws {
    /// Makes a bucket.
    ///
    /// # Panics
    /// When the emulator refuses.
    pub async fn create_bucket(&self, bucket: &str) {
        let place = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint>\
             </CreateBucketConfiguration>"
        );
        let answer = self.s3("PUT", &format!("/{bucket}"), &place).await;
        assert!(answer.contains(" 200 "), "{bucket}: {answer}");
    }

    /// An object's content, if there is one of this name.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn object(&self, bucket: &str, key: &str) -> Option<String> {
        let answer = self.s3("GET", &format!("/{bucket}/{key}"), "").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        match head.contains(" 404 ") {
            true => None,
            false => Some(body.to_owned()),
        }
    }

    /// Writes an object, whatever is there.
    ///
    /// # Panics
    /// When the emulator refuses.
    pub async fn put_object(&self, bucket: &str, key: &str, body: &str) {
        let answer = self.s3("PUT", &format!("/{bucket}/{key}"), body).await;
        assert!(answer.contains(" 200 "), "{key}: {answer}");
    }

    /// The names of all objects in a bucket.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn keys(&self, bucket: &str) -> Vec<String> {
        let answer = self.s3("GET", &format!("/{bucket}?list-type=2"), "").await;
        assert!(answer.contains(" 200 "), "{bucket}: {answer}");
        let keys = answer.split("<Key>").skip(1);
        keys.filter_map(|key| Some(key.split_once("</Key>")?.0.to_owned()))
            .collect()
    }

    /// Removes an object.
    ///
    /// # Panics
    /// When the emulator refuses.
    pub async fn delete_object(&self, bucket: &str, key: &str) {
        let answer = self.s3("DELETE", &format!("/{bucket}/{key}"), "").await;
        assert!(answer.contains(" 204 "), "{key}: {answer}");
    }

    /// Does what time would do to the objects of a bucket.
    ///
    /// # Panics
    /// When there is no such bucket.
    pub async fn age_objects(&self, bucket: &str, by: Duration) {
        let seconds = by.as_secs_f64();
        self.control(&format!("s3/age/{bucket}/{seconds}")).await;
    }

    /// Lets a bucket ignore a header of all writes, such as `If-Match`.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn ignore_header(&self, bucket: &str, header: &str) {
        self.control(&format!("s3/ignore/{bucket}/{header}")).await;
    }

    /// Refuses the next write to a bucket with this HTTP status and code.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn refuse_write(&self, bucket: &str, status: u16, code: &str) {
        let what = format!("s3/refuse/{bucket}/{status}/{code}");
        self.control(&what).await;
    }

    /// Does the next writes to a bucket, and ends their connections without an answer.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn lose_answers(&self, bucket: &str, count: u32) {
        self.control(&format!("s3/lose/{bucket}/{count}")).await;
    }

    /// The number of requests to a bucket so far, refused ones and its creation included.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn requests(&self, bucket: &str) -> u64 {
        let path = format!("/control/s3/requests/{bucket}");
        let answer = self.post(&path, "", "").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        body.parse().unwrap_or_else(|_| panic!("{answer}"))
    }

    async fn s3(&self, method: &str, path: &str, body: &str) -> String {
        let headers = format!(
            "authorization: AWS4-HMAC-SHA256 Credential=id/20260101/{REGION}/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n"
        );
        self.request(method, path, &headers, body).await
    }
}
