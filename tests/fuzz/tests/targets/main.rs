//! The fuzz targets: each part of compose-ci that reads what strangers write.

mod tools;
mod webhooks;
mod tarballs;
mod logs;
mod pages;
mod mails;
