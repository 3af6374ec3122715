//! A store that does not keep its word ends the start.

use compose_ci_shared::config::StoreConfig;
use compose_ci_shared::ledger::Store;
use compose_ci_shared::net::aws::samples;

use crate::world::{World, sdk_config, store_at};

#[tokio::test]
async fn a_sound_store_passes_and_keeps_nothing() {
    let world = World::new().await;
    let store = world.store().await;
    store.probe().await.expect("it keeps its word");
    // The bucket, two reads, two creations and two changes, and the removal.
    assert_eq!(world.aws.requests(&world.bucket).await, 1 + 7);
    assert!(world.aws.keys(&world.bucket).await.is_empty());
}

#[tokio::test]
async fn a_store_that_ignores_a_condition_is_refused() {
    for (header, problem) in [
        (
            "If-None-Match",
            "ignores If-None-Match: it creates an object that is there already",
        ),
        (
            "If-Match",
            "ignores If-Match: it changes an object that was changed meanwhile",
        ),
    ] {
        let world = World::new().await;
        world.aws.ignore_header(&world.bucket, header).await;
        let error = world.store().await.probe().await.expect_err(header);
        let store = format!("s3://{}/team/ci", world.bucket);
        assert_eq!(
            format!("{error:#}"),
            format!("STORE_URL: the store {store} cannot keep a ledger: it {problem}")
        );
    }
}

#[tokio::test]
async fn a_store_that_always_refuses_a_condition_is_refused() {
    let world = World::new().await;
    let refuse = async |status, code| {
        world.aws.refuse_write(&world.bucket, status, code).await;
    };
    refuse(412, "PreconditionFailed").await;
    let error = world.store().await.probe().await.expect_err("no creation");
    let line = format!("{error:#}");
    assert!(
        line.ends_with("it refuses to create an object with If-None-Match"),
        "{line}"
    );

    refuse(501, "NotImplemented").await;
    refuse(501, "NotImplemented").await;
    refuse(501, "NotImplemented").await;
    let error = world.store().await.probe().await.expect_err("no condition");
    let line = format!("{error:#}");
    assert!(
        line.starts_with("STORE_URL: ") && line.contains("NotImplemented"),
        "{line}"
    );
}

#[tokio::test]
async fn what_a_store_lacks_is_told_in_one_line() {
    let world = World::new().await;
    let nowhere = StoreConfig {
        bucket: "nowhere".to_owned(),
        ..world.config()
    };
    let store = store_at(&nowhere, &world.aws.endpoint_url()).await;
    let error = store.probe().await.expect_err("no bucket");
    assert_eq!(
        format!("{error:#}"),
        "STORE_URL: there is no bucket nowhere: check its name, region and account"
    );

    world
        .aws
        .refuse_write(&world.bucket, 403, "AccessDenied")
        .await;
    let error = world.store().await.probe().await.expect_err("denied");
    let denied = format!(
        "STORE_URL: the store s3://{}/team/ci denies s3:PutObject: check the credentials and \
         their policy (AccessDenied: as asked for)",
        world.bucket
    );
    assert_eq!(format!("{error:#}"), denied);

    let store = store_at(&world.config(), "http://127.0.0.1:9").await;
    let error = store.probe().await.expect_err("nobody is there");
    let line = format!("{error:#}");
    assert!(
        line.contains("cannot be reached") && line.lines().count() == 1,
        "{line}"
    );
}

#[tokio::test]
async fn a_store_without_credentials_or_region_is_told() {
    let world = World::new().await;
    let sdk = sdk_config(&world.aws.endpoint_url()).await;
    let without = samples::without_credentials(sdk.clone());
    let store = Store::with_sdk_config(&world.config(), &without).expect("opened");
    let error = store.probe().await.expect_err("no credentials");
    let line = format!("{error:#}");
    assert!(
        line.contains("check the credentials") && line.lines().count() == 1,
        "{line}"
    );

    let nowhere = sdk.into_builder().region(None).build();
    let error = Store::with_sdk_config(&world.config(), &nowhere).expect_err("no region");
    assert_eq!(
        format!("{error:#}"),
        "AWS_REGION: missing (STORE_URL does not name the region)"
    );
}
