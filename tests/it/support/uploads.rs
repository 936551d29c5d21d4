//! Pushing by HTTP: uploads in one or several pieces, mounts from another repository, manifests.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode, header};
use layoutfs::layout::Digest;

use super::answer::{Asked, Reply, Route};
use super::registry::{Manifest, Shared, Store, UploadPlace};

/// A request's whole body.
pub async fn collect(body: Incoming) -> Result<Bytes, hyper::Error> {
    Ok(body.collect().await?.to_bytes())
}

/// Answers everything that is not a read.
pub async fn push(shared: &Arc<Shared>, asked: &Asked, body: Incoming) -> Reply {
    let Ok(body) = collect(body).await else { return Reply::new(StatusCode::BAD_REQUEST) };
    let mut store = shared.store.lock().unwrap();
    match (&asked.method, asked.route()) {
        (&Method::POST, Route::Upload { repository, id: "" }) => {
            open(&mut store, asked, repository, body)
        }
        (&Method::PATCH, Route::Upload { id, .. }) => append(&mut store, asked, id, &body),
        (&Method::PUT, Route::Upload { repository, id }) => {
            finish(&mut store, asked, repository, id, &body)
        }
        (&Method::DELETE, Route::Upload { id, .. }) => {
            take(&mut store, id).map_or_else(unknown, |_| Reply::new(StatusCode::NO_CONTENT))
        }
        (&Method::PUT, Route::Manifest { repository, reference }) => {
            put_manifest(&mut store, asked, repository, reference, body)
        }
        _ => Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not for this address"),
    }
}

/// How much of an upload has come.
pub fn progress(store: &Store, asked: &Asked, id: &str) -> Reply {
    let upload = id.parse().ok().and_then(|id: u64| store.uploads.get(&id));
    upload.map_or_else(unknown, |u| {
        at(&store.upload_place, asked, StatusCode::NO_CONTENT, id, u.len())
    })
}

/// The end of an upload that another registry has begun: its own address, its query, and no
/// credentials, which are not for us.
pub async fn push_here_for_another(shared: &Arc<Shared>, asked: &Asked, body: Incoming) -> Reply {
    let Ok(body) = collect(body).await else { return Reply::new(StatusCode::BAD_REQUEST) };
    let place = asked.path.strip_prefix("/uploads/").and_then(|rest| rest.rsplit_once('/'));
    let (Some((repository, id)), &Method::PUT) = (place, &asked.method) else { return unknown() };
    if asked.header(header::AUTHORIZATION).is_some() {
        return Reply::error(StatusCode::BAD_REQUEST, "DENIED", "two ways to authenticate");
    }
    let origins = shared.store.lock().unwrap().storage_of.clone();
    for origin in origins {
        let mut store = origin.store.lock().unwrap();
        if id.parse().is_ok_and(|id: u64| store.uploads.contains_key(&id)) {
            return finish(&mut store, asked, repository, id, &body);
        }
    }
    unknown()
}

fn unknown() -> Reply {
    Reply::not_found("BLOB_UPLOAD_UNKNOWN")
}

fn take(store: &mut Store, id: &str) -> Option<Vec<u8>> {
    store.uploads.remove(&id.parse().ok()?)
}

/// Where an upload goes on. `Range` is inclusive and has no form for nothing: it says `0-0`.
fn at(place: &UploadPlace, asked: &Asked, status: StatusCode, id: &str, len: usize) -> Reply {
    let Route::Upload { repository, .. } = asked.route() else { return unknown() };
    let path = match place.is_elsewhere {
        true => format!("/uploads/{repository}/{id}"),
        false => format!("/v2/{repository}/blobs/uploads/{id}"),
    };
    let encoded = |state: &str| state.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
    let state = place.state.as_deref().map(|state| format!("?state={}", encoded(state)));
    Reply::new(status)
        .with("location", format!("{}{path}{}", place.base, state.unwrap_or_default()))
        .with("docker-upload-uuid", id)
        .with("range", format!("0-{}", len.saturating_sub(1)))
}

fn created(repository: &str, digest: Digest) -> Reply {
    Reply::new(StatusCode::CREATED)
        .with("location", format!("/v2/{repository}/blobs/{digest}"))
        .with("docker-content-digest", digest)
}

/// POST: a mount, a blob in one piece, or the start of several.
fn open(store: &mut Store, asked: &Asked, repository: &str, body: Bytes) -> Reply {
    if let (Some(digest), Some(from)) = (asked.parameter("mount"), asked.parameter("from"))
        && let Ok(digest) = digest.parse()
        && let Some(bytes) = store.blob(from, &digest)
    {
        store.put_blob(repository, digest, bytes);
        return created(repository, digest);
    }
    if asked.parameter("digest").is_some() {
        return put_blob(store, asked, repository, body);
    }
    store.uploads_made += 1;
    let id = store.uploads_made;
    store.uploads.insert(id, body.to_vec());
    at(&store.upload_place, asked, StatusCode::ACCEPTED, &id.to_string(), body.len())
}

fn append(store: &mut Store, asked: &Asked, id: &str, body: &[u8]) -> Reply {
    let place = store.upload_place.clone();
    let upload = id.parse().ok().and_then(|id: u64| store.uploads.get_mut(&id));
    let Some(upload) = upload else { return unknown() };
    let start = asked.header(header::CONTENT_RANGE).and_then(|r| r.split('-').next());
    if start.is_some_and(|s| s.parse() != Ok(upload.len())) {
        return at(&place, asked, StatusCode::RANGE_NOT_SATISFIABLE, id, upload.len());
    }
    upload.extend_from_slice(body);
    at(&place, asked, StatusCode::ACCEPTED, id, upload.len())
}

fn finish(store: &mut Store, asked: &Asked, repository: &str, id: &str, body: &[u8]) -> Reply {
    if store.upload_place.state.is_some()
        && asked.parameter("state") != store.upload_place.state.as_deref()
    {
        return unknown();
    }
    let Some(mut upload) = take(store, id) else { return unknown() };
    upload.extend_from_slice(body);
    put_blob(store, asked, repository, upload.into())
}

fn put_blob(store: &mut Store, asked: &Asked, repository: &str, bytes: Bytes) -> Reply {
    let digest = asked.parameter("digest").and_then(|d| d.parse::<Digest>().ok());
    match digest.filter(|d| d.verify(&bytes).is_ok()) {
        Some(digest) => {
            store.put_blob(repository, digest, bytes);
            created(repository, digest)
        }
        None => Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "not these bytes"),
    }
}

fn put_manifest(
    store: &mut Store,
    asked: &Asked,
    repository: &str,
    reference: &str,
    bytes: Bytes,
) -> Reply {
    let invalid = |code, message: &str| Reply::error(StatusCode::BAD_REQUEST, code, message);
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
        return invalid("MANIFEST_INVALID", "not JSON");
    };
    let parts = document["layers"].as_array().into_iter().flatten();
    for part in parts.chain(document.get("config")) {
        let digest = part["digest"].as_str().unwrap_or_default();
        if !digest.parse().is_ok_and(|d| store.blob(repository, &d).is_some()) {
            return invalid("MANIFEST_BLOB_UNKNOWN", digest);
        }
    }
    let digest = match reference.parse::<Digest>() {
        Ok(digest) if digest.verify(&bytes).is_err() => {
            return invalid("DIGEST_INVALID", "not these bytes");
        }
        Ok(digest) => digest,
        Err(_) => Digest::sha256_of(&bytes),
    };
    if store.has_versions {
        let current = store.manifest(repository, reference).map(|(d, _)| format!("\"{d}\""));
        let expected = asked.header(header::IF_MATCH);
        if expected.is_some() && expected != current.as_deref()
            || asked.header(header::IF_NONE_MATCH).is_some() && current.is_some()
        {
            return Reply::new(StatusCode::PRECONDITION_FAILED);
        }
    }
    let rival = if reference == digest.to_string() { None } else { store.rivals.pop() };
    let keeps_referrers = store.referrers.is_there;
    let media_type = asked.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
    let repository_name = repository;
    let repository = store.repository(repository);
    repository.manifests.insert(digest, Manifest { media_type, bytes });
    if reference.parse::<Digest>().is_err() {
        repository.tags.insert(reference.to_owned(), rival.unwrap_or(digest));
    }
    let reply = Reply::new(StatusCode::CREATED)
        .with("location", format!("/v2/{repository_name}/manifests/{digest}"))
        .with("docker-content-digest", digest);
    match document["subject"]["digest"].as_str().filter(|_| keeps_referrers) {
        Some(subject) => reply.with("oci-subject", subject),
        None => reply,
    }
}
