//! The objects of the engine by their labels: what exists, and its removal.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListNetworksOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RemoveImageOptionsBuilder, RemoveVolumeOptionsBuilder,
};

use super::{Engine, EngineError, Result, gone_is_fine, in_time};

/// An object on the engine that carries labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// The id, or name, that it is removed by.
    pub id: String,
    /// The name that a person gave it, or compose.
    pub name: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

/// An image that has no name, as when a newer one has taken it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamelessImage {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// When it was built, to the second.
    pub created_at: SystemTime,
}

impl Engine {
    /// Makes a volume, or finds the one of this name, and returns its path on the engine's host.
    pub(crate) async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<PathBuf> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..Default::default()
        };
        let volume = in_time(self.docker.create_volume(request)).await?;
        Ok(volume.mountpoint.into())
    }

    /// Lists the containers with all of these labels (`name` or `name=value`), ended ones included.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn containers(&self, labels: &[&str]) -> Result<Vec<Labelled>> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&by_labels(labels))
            .build();
        let found = in_time(self.docker.list_containers(Some(options))).await?;
        Ok(found
            .into_iter()
            .filter_map(|one| {
                let name = one.names.into_iter().flatten().next().unwrap_or_default();
                Some(labelled(one.id?, name, one.labels))
            })
            .collect())
    }

    /// Lists the volumes with a label.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn volumes(&self, label: &str) -> Result<Vec<Labelled>> {
        let options = ListVolumesOptionsBuilder::default()
            .filters(&by_labels(&[label]))
            .build();
        let found = in_time(self.docker.list_volumes(Some(options))).await?;
        let volumes = found.volumes.unwrap_or_default().into_iter();
        Ok(volumes
            .map(|one| labelled(one.name.clone(), one.name, Some(one.labels)))
            .collect())
    }

    /// Lists the networks with a label.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn networks(&self, label: &str) -> Result<Vec<Labelled>> {
        let options = ListNetworksOptionsBuilder::default()
            .filters(&by_labels(&[label]))
            .build();
        let found = in_time(self.docker.list_networks(Some(options))).await?;
        Ok(found
            .into_iter()
            .filter_map(|one| Some(labelled(one.id?, one.name.unwrap_or_default(), one.labels)))
            .collect())
    }

    /// Lists the tags of the images with a label.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn image_tags(&self, label: &str) -> Result<Vec<String>> {
        let options = ListImagesOptionsBuilder::default()
            .filters(&by_labels(&[label]))
            .build();
        let found = in_time(self.docker.list_images(Some(options))).await?;
        Ok(found
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .collect())
    }

    /// Lists the images with a label that have no name.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn nameless_images(&self, label: &str) -> Result<Vec<NamelessImage>> {
        let mut filters = by_labels(&[label]);
        filters.insert("dangling", vec!["true".to_owned()]);
        let options = ListImagesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let found = in_time(self.docker.list_images(Some(options))).await?;
        let nameless = found.into_iter().map(|image| NamelessImage {
            id: image.id,
            labels: image.labels,
            created_at: SystemTime::UNIX_EPOCH
                + Duration::from_secs(image.created.try_into().unwrap_or(0)),
        });
        Ok(nameless.collect())
    }

    /// Returns the id of the image that this name means; nothing if there is none.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn image_id(&self, name: &str) -> Result<Option<String>> {
        match in_time(self.docker.inspect_image(name)).await {
            Ok(image) => Ok(image.id),
            Err(EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a container, running or not, with its anonymous volumes. Gone already is fine.
    pub(crate) async fn remove_container(&self, container: &str) -> Result<()> {
        self.remove(container, true).await
    }

    /// Removes a container that does not run; one that does is an [`EngineError::Conflict`]. Gone
    /// already is fine.
    pub(crate) async fn remove_idle_container(&self, container: &str) -> Result<()> {
        self.remove(container, false).await
    }

    async fn remove(&self, container: &str, even_running: bool) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(even_running)
            .v(true)
            .build();
        gone_is_fine(in_time(self.docker.remove_container(container, Some(options))).await)
    }

    /// Removes a volume. Gone already is fine.
    pub(crate) async fn remove_volume(&self, volume: &str) -> Result<()> {
        let options = RemoveVolumeOptionsBuilder::default().force(true).build();
        gone_is_fine(in_time(self.docker.remove_volume(volume, Some(options))).await)
    }

    /// Removes a network. Gone already is fine.
    ///
    /// # Errors
    /// A container uses it: [`EngineError::Conflict`]; or the engine does not answer.
    pub(crate) async fn remove_network(&self, network: &str) -> Result<()> {
        match gone_is_fine(in_time(self.docker.remove_network(network)).await) {
            // Engine 20.10 answers 403 for a network in use.
            Err(EngineError::Refused(why)) if self.is_attached(network).await? => {
                Err(EngineError::Conflict(why))
            }
            removed => removed,
        }
    }

    /// Returns true if a container is attached to a network.
    async fn is_attached(&self, network: &str) -> Result<bool> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([("network", vec![network])]))
            .build();
        let attached = in_time(self.docker.list_containers(Some(options))).await?;
        Ok(!attached.is_empty())
    }

    /// Removes a tag, and the image with its last tag. Gone already is fine.
    ///
    /// # Errors
    /// A container uses it: [`EngineError::Conflict`]; or the engine does not answer.
    pub async fn remove_image(&self, tag: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::default().build();
        self.remove_image_with(tag, options).await
    }

    /// Removes a tag, as [`Engine::remove_image`] does, unless a container uses it.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn remove_unused_image(&self, tag: &str) -> Result<()> {
        match self.remove_image(tag).await {
            Err(EngineError::Conflict(_)) => Ok(()),
            removed => removed,
        }
    }

    /// Removes an image by its id, and not the images without a name that it was built on: those
    /// may be a person's build cache.
    ///
    /// # Errors
    /// A container uses it, or a newer image is based on it: [`EngineError::Conflict`]; or the engine
    /// does not answer.
    pub async fn remove_only_image(&self, id: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::default().noprune(true).build();
        self.remove_image_with(id, options).await
    }

    async fn remove_image_with(&self, name: &str, options: RemoveImageOptions) -> Result<()> {
        let removed = in_time(self.docker.remove_image(name, Some(options), None)).await;
        gone_is_fine(removed.map(drop))
    }
}

fn by_labels(labels: &[&str]) -> HashMap<&'static str, Vec<String>> {
    HashMap::from([("label", labels.iter().map(ToString::to_string).collect())])
}

fn labelled(id: String, name: String, labels: Option<HashMap<String, String>>) -> Labelled {
    Labelled {
        id,
        name,
        labels: labels.unwrap_or_default(),
    }
}
