//! What a registry answers: which refusals pass, how long it may be silent, and what the rest means.

use std::time::Duration;

use object_store::Error;
use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::storage::error::said as said_by;
use crate::storage::wire::SILENCE;

/// Times that something is pushed before a refusal counts.
const PUSHES: u32 = 4;
/// How long is waited before the next push, times those before.
const PAUSE: Duration = Duration::from_millis(100);

/// Pushes again what a registry refused: of two that push one blob at a time it may refuse either, or refuse
/// an image whose blob it has only just taken.
pub(super) async fn again<T, F: Future<Output = oci_client::errors::Result<T>>>(
    push: impl Fn() -> F,
) -> oci_client::errors::Result<T> {
    let mut pushes = 0;
    loop {
        pushes += 1;
        match push().await {
            Err(error) if pushes < PUSHES && is_passing(&error) => {
                tracing::debug!(%error, "the registry refused a push");
                tokio::time::sleep(PAUSE * pushes).await;
            }
            answer => return answer,
        }
    }
}

/// Tells whether a push may be taken a moment later.
fn is_passing(error: &OciDistributionError) -> bool {
    let envelope = match error {
        OciDistributionError::RegistryError { envelope, .. } => envelope,
        OciDistributionError::RequestError(_) => return true,
        // What its client does not read as an envelope comes as text.
        OciDistributionError::ServerError { code, message, .. } => {
            let passing = ["BLOB_UNKNOWN", "BLOB_UPLOAD", "DIGEST_INVALID"];
            return *code >= 500 || passing.iter().any(|code| message.contains(code));
        }
        _ => return false,
    };
    let passing = [
        OciErrorCode::BlobUnknown,
        OciErrorCode::BlobUploadInvalid,
        OciErrorCode::BlobUploadUnknown,
        OciErrorCode::DigestInvalid,
        OciErrorCode::ManifestBlobUnknown,
        OciErrorCode::Toomanyrequests,
    ];
    envelope
        .errors
        .iter()
        .any(|error| passing.contains(&error.code))
}

/// Bounds a call that moves little.
pub(super) async fn within<T>(
    call: impl Future<Output = oci_client::errors::Result<T>>,
) -> oci_client::errors::Result<T> {
    match tokio::time::timeout(SILENCE, call).await {
        Ok(done) => done,
        Err(_) => Err(silent(SILENCE)),
    }
}

pub(super) fn silent(patience: Duration) -> OciDistributionError {
    let what = format!("no answer for {} s", patience.as_secs());
    OciDistributionError::GenericError(Some(what))
}

pub(super) fn generic(what: String) -> Error {
    Error::Generic {
        store: "OCI",
        source: what.into(),
    }
}

/// Tells in the words of `object_store` what a registry answered.
pub(super) fn told(path: &str, error: OciDistributionError) -> Error {
    let is = |code: &[OciErrorCode]| match &error {
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|error| code.contains(&error.code)),
        _ => false,
    };
    let status = match &error {
        OciDistributionError::ServerError { code, .. } => Some(*code),
        OciDistributionError::RequestError(error) => error.status().map(|status| status.as_u16()),
        _ => None,
    };
    let is_unknown = is(&[
        OciErrorCode::BlobUnknown,
        OciErrorCode::ManifestUnknown,
        OciErrorCode::NameUnknown,
        OciErrorCode::NotFound,
    ]);
    let is_missing = matches!(error, OciDistributionError::ImageManifestNotFoundError(_));
    let is_denied = matches!(
        error,
        OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
    );
    let is_refused = is(&[OciErrorCode::Denied, OciErrorCode::Unauthorized]);
    let path = path.to_owned();
    // The URL of a request may carry a signature of the store behind the registry.
    let source: Box<dyn std::error::Error + Send + Sync> = match error {
        OciDistributionError::RequestError(error) => Box::new(error.without_url()),
        OciDistributionError::RegistryError { envelope, .. } => {
            let said = serde_json::to_string(&envelope).ok();
            let said = said.as_deref().and_then(said_by);
            format!(
                "the registry answers {}",
                said.as_deref().unwrap_or("with an error")
            )
            .into()
        }
        OciDistributionError::ServerError { code, message, .. } => {
            let said = said_by(&message).unwrap_or_default();
            format!("the registry answers {code} {said}")
                .trim_end()
                .to_owned()
                .into()
        }
        OciDistributionError::UnauthorizedError { .. } => "the registry answers 401".into(),
        OciDistributionError::GenericError(Some(what)) => what.into(),
        // So comes what goes wrong while a blob is read.
        OciDistributionError::IoError(error) => match error.downcast::<reqwest::Error>() {
            Ok(error) => Box::new(error.without_url()),
            Err(error) => Box::new(error),
        },
        other => Box::new(other),
    };
    if is_unknown || is_missing || status == Some(404) {
        return Error::NotFound { path, source };
    }
    if is_denied || is_refused || matches!(status, Some(401 | 403)) {
        return Error::PermissionDenied { path, source };
    }
    Error::Generic {
        store: "OCI",
        source,
    }
}
