//! What handlers take out of a request, with refusals in the voice of this API.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};

/// How long a body may take to come.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// A body of JSON.
pub(super) struct Json<T>(pub(super) T);

/// The query.
pub(super) struct Query<T>(pub(super) T);

/// The parts of the path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + 'static> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = axum::Json::<T>::from_request(request, state);
        let read = tokio::time::timeout(BODY_TIMEOUT, read)
            .await
            .map_err(|_| ApiError::new(Code::BodySlow, "the body did not come in 30 s"))?;
        read.map(|axum::Json(body)| Self(body)).map_err(body_bad)
    }
}

fn body_bad(rejection: JsonRejection) -> ApiError {
    if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::new(
            Code::BodyTooLarge,
            "the body is larger than this call takes",
        );
    }
    let why = match &rejection {
        JsonRejection::MissingJsonContentType(_) => {
            "its content type is not `application/json`".to_owned()
        }
        other => cleaned(&cause(other)),
    };
    ApiError::new(Code::BodyBad, format!("the body cannot be used: {why}"))
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection: QueryRejection| {
                let why = cleaned(&cause(&rejection));
                ApiError::new(Code::QueryBad, format!("the query cannot be used: {why}"))
            })
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(path)| Self(path))
            .map_err(|rejection: PathRejection| {
                let why = cleaned(&rejection.body_text());
                ApiError::new(Code::PathBad, format!("the path cannot be used: {why}"))
            })
    }
}

/// Returns the innermost words of a rejection, which name the field; the outer ones name types.
fn cause(rejection: &dyn std::error::Error) -> String {
    let mut innermost = rejection;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Shows what somebody sent without its control characters, and not all of it.
fn cleaned(text: &str) -> String {
    let text = text.chars().take(400);
    text.flat_map(|c| match c.is_control() {
        true => c.escape_default().collect::<Vec<_>>(),
        false => vec![c],
    })
    .collect()
}
