//! A registry of container images as a storage: what Docker's storage is to other tools.
//!
//! An artifact is an image in the CNCF wasm layout: one layer, the component itself, so its digest is
//! the artifact's own and a pull needs no tag. Everything else is an object under a tag that is made of
//! its key. Tags are moved by nobody but who pushes; nothing here trusts one for what it names.

mod answer;
mod door;
mod tag;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::HeaderValue;
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use self::answer::{again, generic, silent, told, within};
use self::door::{Act, Door};
use self::tag::{artifact_tag, key_of, tag_of, version_tag};
use super::credentials::Unusable;
use super::wire::{CONNECT, SILENCE, UPLOAD_RATE};
use super::{Meter, Root, credentials, key};
use crate::config::Access;
use crate::model::artifact::Digest;

/// The config of a wasm artifact (CNCF TAG Runtime, "OCI artifact layout for wasm").
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// Its layer.
const WASM_LAYER: &str = "application/wasm";
/// Layers of tools that came before that layout.
const LEGACY_LAYERS: [&str; 2] = [
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];
/// The layer of an object that is no component.
const OBJECT_LAYER: &str = "application/octet-stream";
/// What an object that is no component has for a config: the empty descriptor of the OCI image spec.
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// The annotation that names a thing for people.
pub(super) const TITLE: &str = "org.opencontainers.image.title";
/// Images of a kind that has layers.
const MANIFESTS: [&str; 2] = [
    OCI_IMAGE_MEDIA_TYPE,
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One repository of a registry. Cheap to clone.
#[derive(Clone)]
pub(super) struct Registry {
    client: Client,
    door: Arc<Door>,
    host: String,
    repository: String,
    meter: Meter,
}

/// An artifact that somebody pushed under a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tagged {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Registry {
    /// Opens a repository with the Docker credentials of its registry. Nothing is called yet.
    pub(super) fn open(
        root: &Root,
        access: &Access,
        meter: &Meter,
    ) -> std::result::Result<Self, Unusable> {
        let login = credentials::docker(access, root.place())?;
        let (protocol, scheme) = match root.is_plain_text() {
            true => (ClientProtocol::Http, "http"),
            false => (ClientProtocol::Https, "https"),
        };
        let named = Reference::with_tag(root.place().into(), root.path().into(), "latest".into());
        let address = format!("{scheme}://{}/", named.resolve_registry()).parse();
        let address = address.map_err(|_| Unusable::new("it is no address".to_owned()))?;
        let door = Door::new(address, root.path(), login);
        let door =
            door.map_err(|error| Unusable::new(format!("no client can be made: {error}")))?;
        crate::tls::install();
        let client = Client::new(ClientConfig {
            protocol,
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT),
            user_agent: concat!("waft/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        });
        Ok(Self {
            client,
            door: Arc::new(door),
            host: root.place().to_owned(),
            repository: root.path().to_owned(),
            meter: meter.clone(),
        })
    }

    fn tag(&self, tag: &str) -> Reference {
        Reference::with_tag(self.host.clone(), self.repository.clone(), tag.to_owned())
    }

    fn at(&self, digest: &str) -> Reference {
        Reference::with_digest(
            self.host.clone(),
            self.repository.clone(),
            digest.to_owned(),
        )
    }

    /// Every call begins here, so that what opens the registry is known to the client.
    async fn client(&self, to: RegistryOperation) -> Result<&Client> {
        let image = self.tag("latest");
        let registry = image.resolve_registry();
        let nobody = RegistryAuth::Anonymous;
        self.client.store_auth_if_needed(registry, &nobody).await;
        // A push looks first what is there.
        let all = match to {
            RegistryOperation::Pull => &[(RegistryOperation::Pull, Act::Pull)][..],
            RegistryOperation::Push => &[
                (RegistryOperation::Pull, Act::Pull),
                (RegistryOperation::Push, Act::Push),
            ],
        };
        for (to, act) in all {
            if let Some(token) = self.door.pass(*act).await? {
                self.client.tokens.insert(&image, *to, token).await;
            }
        }
        Ok(&self.client)
    }

    /// Looks up the one layer of an image that may be a component.
    ///
    /// `reference` is a tag, or the digest of a manifest.
    pub(super) async fn find(&self, reference: &str) -> Result<Tagged> {
        let (bytes, _) = self
            .door
            .manifest(&self.image(reference), &MANIFESTS)
            .await?;
        layer_of(reference, &parsed(reference, &bytes)?)
    }

    fn image(&self, reference: &str) -> Reference {
        match reference.starts_with("sha256:") {
            true => self.at(reference),
            false => self.tag(reference),
        }
    }

    /// Gives an image that somebody else pushed a tag of ours too, so that the registry keeps its artifact
    /// when the other tag moves on.
    pub(super) async fn pin(&self, reference: &str, digest: Digest) -> Result<()> {
        if self.is_tagged(digest).await? {
            return Ok(());
        }
        let image = self.image(reference);
        let (bytes, kind) = self.door.manifest(&image, &MANIFESTS).await?;
        if layer_of(reference, &parsed(reference, &bytes)?)?.digest != digest {
            return Err(generic(format!("`{reference}` moved meanwhile")));
        }
        let kind = kind.unwrap_or_else(|| HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE));
        let client = self.client(RegistryOperation::Push).await?;
        let own = artifact_tag(digest);
        let image = self.tag(&own);
        let push = || within(client.push_manifest_raw(&image, bytes.clone(), kind.clone()));
        let pushed = again(push).await;
        pushed.map(drop).map_err(|error| told(&own, error))
    }

    async fn manifest(&self, name: &str, image: &Reference) -> Result<OciImageManifest> {
        let (bytes, _) = self.door.manifest(image, &MANIFESTS).await?;
        parsed(name, &bytes)
    }

    /// Tells whether an artifact has a manifest of its own, by which the registry keeps it.
    pub(super) async fn is_tagged(&self, digest: Digest) -> Result<bool> {
        let own = artifact_tag(digest);
        match self.manifest(&own, &self.tag(&own)).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts the tag of a version on an artifact that was put before, and answers it.
    pub(super) async fn name_version(
        &self,
        digest: Digest,
        (project, flow, version): (&str, &str, u32),
    ) -> Result<String> {
        let tag = version_tag(project, flow, version);
        let own = artifact_tag(digest);
        let manifest = self.manifest(&own, &self.tag(&own)).await?;
        self.push_manifest(&tag, manifest).await?;
        Ok(tag)
    }

    /// Has the registry forget a blob; answers what it says where it does not do that.
    pub(super) async fn delete_blob(&self, digest: Digest) -> Result<Option<String>> {
        self.door.delete_blob(&digest.to_string()).await
    }

    async fn push_manifest(&self, tag: &str, manifest: OciImageManifest) -> Result<()> {
        let manifest = OciManifest::Image(manifest);
        let client = self.client(RegistryOperation::Push).await?;
        let image = self.tag(tag);
        let push = || within(client.push_manifest(&image, &manifest));
        again(push)
            .await
            .map(drop)
            .map_err(|error| told(tag, error))
    }

    async fn push_blob(&self, digest: &str, payload: PutPayload) -> Result<()> {
        let client = self.client(RegistryOperation::Push).await?;
        let image = self.at(digest);
        let size = payload.content_length() as u64;
        let push = || async {
            if within(client.blob_exists(&image, digest)).await? {
                return Ok(());
            }
            let meter = self.meter.clone();
            let chunks = stream::iter(payload.clone()).map(move |chunk| {
                meter.add(chunk.len());
                Ok(chunk)
            });
            let push = client.push_blob_stream(&image, chunks, digest, Some(size));
            let patience = SILENCE + std::time::Duration::from_secs(size / UPLOAD_RATE);
            match tokio::time::timeout(patience, push).await {
                Ok(pushed) => pushed.map(drop),
                Err(_) => Err(silent(patience)),
            }
        };
        again(push).await.map_err(|error| told(digest, error))
    }

    /// Answers the blob behind a key: its digest, and its size where the manifest says it.
    async fn blob(&self, path: &Path) -> Result<(String, Option<u64>)> {
        match key::artifact_of(path.as_ref()) {
            Some(digest) => Ok((digest.to_string(), None)),
            None => {
                let tag = tag_of(path.as_ref());
                let manifest = self.manifest(path.as_ref(), &self.tag(&tag)).await?;
                match manifest.layers.as_slice() {
                    [layer] => Ok((layer.digest.clone(), u64::try_from(layer.size).ok())),
                    _ => Err(generic(format!("`{path}` is no object of waft's"))),
                }
            }
        }
    }

    async fn meta(&self, path: Path) -> Result<ObjectMeta> {
        self.get_opts(&path, GetOptions::default())
            .await
            .map(|got| got.meta)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({self})")
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}/{}", self.host, self.repository)
    }
}

fn unsupported(what: &str) -> Error {
    Error::NotImplemented {
        operation: what.to_owned(),
        implementer: "OCI".to_owned(),
    }
}

#[async_trait]
impl ObjectStore for Registry {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let artifact = key::artifact_of(path.as_ref());
        let tag = tag_of(path.as_ref());
        if opts.mode == PutMode::Create {
            // A registry has no conditional put; of two that push one tag the later one counts. Artifacts
            // and segments are named by what they are, so it is the same either way.
            match self.manifest(path.as_ref(), &self.tag(&tag)).await {
                Ok(_) => {
                    return Err(Error::AlreadyExists {
                        path: path.to_string(),
                        source: "the tag exists".into(),
                    });
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let size = payload.content_length();
        let digest = match artifact {
            Some(digest) => digest.to_string(),
            None => {
                let mut hasher = Sha256::new();
                payload.iter().for_each(|chunk| hasher.update(chunk));
                Digest::from_bytes(hasher.finalize().into()).to_string()
            }
        };
        let (config, config_kind, layer_kind) = match artifact {
            Some(_) => (wasm_config(&digest), WASM_CONFIG, WASM_LAYER),
            None => (Bytes::from_static(b"{}"), EMPTY_CONFIG, OBJECT_LAYER),
        };
        let config_digest = Digest::of(&config).to_string();
        let annotations = annotations(&opts.attributes);
        self.push_blob(&digest, payload).await?;
        self.push_blob(&config_digest, config.clone().into())
            .await?;
        let descriptor = |kind: &str, digest: String, size: usize| OciDescriptor {
            media_type: kind.to_owned(),
            digest,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let mut layer = descriptor(layer_kind, digest, size);
        // Other clients write a layer into a file of this name, and skip one that has none.
        let title = annotations.get(TITLE).map(|flow| format!("{flow}.wasm"));
        layer.annotations = title.map(|title| BTreeMap::from([(TITLE.to_owned(), title)]));
        let manifest = OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(config_kind, config_digest, config.len()),
            layers: vec![layer],
            artifact_type: artifact
                .is_none()
                .then(|| "application/vnd.waft.object".to_owned()),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..OciImageManifest::default()
        };
        self.push_manifest(&tag, manifest).await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("an upload in parts"))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let (digest, size) = self.blob(path).await?;
        let image = self.at(&digest);
        let client = self.client(RegistryOperation::Pull).await?;
        let name = path.as_ref();
        let meta = |size| ObjectMeta {
            location: path.clone(),
            last_modified: Default::default(),
            size,
            e_tag: Some(digest.clone()),
            version: None,
        };
        let wanted = match (&options.range, options.head) {
            (Some(GetRange::Bounded(range)), false) => Some(range.clone()),
            (None, _) | (_, true) => None,
            _ => return Err(unsupported("a range without both ends")),
        };
        if options.head
            && let Some(size) = size
        {
            return Ok(result(meta(size), 0..0, stream::empty().boxed()));
        }
        if let Some(range) = wanted {
            let length = range.end - range.start;
            let pull =
                client.pull_blob_stream_partial(&image, digest.as_str(), range.start, Some(length));
            let blob = within(pull).await.map_err(|error| told(name, error))?;
            let (bytes, from) = match blob {
                BlobResponse::Partial(bytes) => (bytes.stream, 0),
                BlobResponse::Full(bytes) => (bytes.stream, range.start),
            };
            let named = path.to_string();
            let bytes = bytes
                .map_err(move |error| told(&named, error.into()))
                .boxed();
            let bytes = cut(bytes, from, length);
            return Ok(result(meta(size.unwrap_or(range.end)), range, bytes));
        }
        let pull = client.pull_blob_stream_partial(&image, digest.as_str(), 0, None);
        let blob = within(pull).await.map_err(|error| told(name, error))?;
        let bytes = match blob {
            BlobResponse::Partial(bytes) | BlobResponse::Full(bytes) => bytes,
        };
        let size = size.or(bytes.content_length);
        let size =
            size.ok_or_else(|| generic("the registry does not say how large it is".to_owned()))?;
        if options.head {
            return Ok(result(meta(size), 0..0, stream::empty().boxed()));
        }
        let path = path.to_string();
        let stream = bytes.stream.map_err(move |error| told(&path, error.into()));
        Ok(result(meta(size), 0..size, patient(stream.boxed())))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        locations
            .map(|location| location.and_then(|_| Err(unsupported("deleting"))))
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let registry = self.clone();
        let prefix = prefix.cloned();
        let tags = async move {
            let image = registry.tag("latest");
            let mut tags: Vec<String> = Vec::new();
            loop {
                let client = registry.client(RegistryOperation::Pull).await?;
                let last = tags.last().cloned();
                let nobody = RegistryAuth::Anonymous;
                let call = client.list_tags(&image, &nobody, Some(1000), last.as_deref());
                let page = match within(call).await {
                    Ok(page) => page.tags,
                    Err(error) => return Err(told("tags", error)),
                };
                // A registry that ignores `last` would go on for ever.
                if page.is_empty() || page.iter().any(|tag| Some(tag) == last.as_ref()) {
                    break;
                }
                let is_whole = page.len() < 1000;
                tags.extend(page);
                if is_whole {
                    break;
                }
            }
            let keys = tags.into_iter().filter_map(|tag| key_of(&tag));
            let is_under = move |key: &Path| {
                prefix
                    .as_ref()
                    .is_none_or(|prefix| key.prefix_matches(prefix))
            };
            let keys: Vec<_> = keys.filter(is_under).collect();
            Ok(stream::iter(keys.into_iter().map(Ok)).and_then(move |key| {
                let registry = registry.clone();
                async move {
                    match registry.meta(key.clone()).await {
                        // Named all the same, and by its missing ETag told from one that is there.
                        Err(Error::NotFound { .. }) => Ok(gone(key)),
                        answer => answer,
                    }
                }
            }))
        };
        stream::once(tags).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(unsupported("a listing by folders"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copying"))
    }
}

/// A tag whose image is not whole.
fn gone(location: Path) -> ObjectMeta {
    ObjectMeta {
        location,
        last_modified: Default::default(),
        size: 0,
        e_tag: None,
        version: None,
    }
}

/// Finds the one layer of an image that may be a component.
fn layer_of(reference: &str, manifest: &OciImageManifest) -> Result<Tagged> {
    let is_wasm = |layer: &&OciDescriptor| {
        let kind = layer.media_type.as_str();
        kind == WASM_LAYER || LEGACY_LAYERS.contains(&kind)
    };
    let layers: Vec<_> = manifest.layers.iter().filter(is_wasm).collect();
    let [layer] = layers.as_slice() else {
        let kinds: Vec<_> = manifest
            .layers
            .iter()
            .map(|layer| &*layer.media_type)
            .collect();
        return Err(generic(format!(
            "`{reference}` has no wasm layer of its own, but {}",
            kinds.join(", ")
        )));
    };
    let digest = layer.digest.parse();
    let digest = digest.map_err(|_| generic("its layer has no sha256 digest".to_owned()))?;
    let size = u64::try_from(layer.size);
    let size = size.map_err(|_| generic("its layer has a size below zero".to_owned()))?;
    Ok(Tagged { digest, size })
}

fn parsed(name: &str, bytes: &[u8]) -> Result<OciImageManifest> {
    let read = serde_json::from_slice(bytes);
    read.map_err(|error| generic(format!("the manifest of `{name}` cannot be read: {error}")))
}

fn result(
    meta: ObjectMeta,
    range: Range<u64>,
    bytes: BoxStream<'static, Result<Bytes>>,
) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(bytes),
        meta,
        range,
        attributes: Attributes::new(),
        extensions: Default::default(),
    }
}

/// Ends a stream whose server is silent.
fn patient(bytes: BoxStream<'static, Result<Bytes>>) -> BoxStream<'static, Result<Bytes>> {
    stream::unfold(bytes, |mut bytes| async {
        match tokio::time::timeout(SILENCE, bytes.next()).await {
            Ok(next) => next.map(|next| (next, bytes)),
            Err(_) => {
                let silent = generic(format!("no answer for {} s", SILENCE.as_secs()));
                Some((Err(silent), stream::empty().boxed()))
            }
        }
    })
    .boxed()
}

/// Cuts a stretch out of a stream.
fn cut(
    bytes: BoxStream<'static, Result<Bytes>>,
    from: u64,
    length: u64,
) -> BoxStream<'static, Result<Bytes>> {
    let mut skip = from;
    let mut left = length;
    patient(bytes)
        .try_filter_map(move |mut chunk| {
            let gone = skip.min(chunk.len() as u64);
            skip -= gone;
            let _ = chunk.split_to(usize::try_from(gone).unwrap_or(chunk.len()));
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= chunk.len() as u64;
            std::future::ready(Ok((!chunk.is_empty()).then_some(chunk)))
        })
        .boxed()
}

/// The config of a wasm artifact.
fn wasm_config(layer: &str) -> Bytes {
    let config = json!({
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
    });
    config.to_string().into()
}

/// What is known of an artifact, as annotations that other tools show.
fn annotations(attributes: &Attributes) -> BTreeMap<String, String> {
    attributes
        .iter()
        .filter_map(|(name, value)| match name {
            object_store::Attribute::Metadata(name) => Some((name.to_string(), value.to_string())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stretch_is_cut_out_of_whatever_chunks_come() {
        let chunks = ["ab", "", "cdef", "g"].map(|text| Ok(Bytes::from(text)));
        let cut = cut(stream::iter(chunks).boxed(), 1, 4);
        let chunks: Vec<_> = cut.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), b"bcde");
    }
}
