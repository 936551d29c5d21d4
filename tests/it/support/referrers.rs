//! What refers to a manifest: the registry's own list in pages, filtered or not, or none at all.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::answer::{Asked, Reply};
use super::registry::Store;

const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What the registry does about manifests with a subject.
#[derive(Debug, Clone)]
pub struct ReferrersApi {
    /// Without it the address is unknown, and a push is not told that its subject was seen.
    pub is_there: bool,
    /// `artifactType` is respected, and the answer says so.
    pub filters: bool,
    /// Descriptors on a page; `None`: one page.
    pub page: Option<usize>,
    /// Where the next page is: empty for this server without naming it.
    pub next_base: String,
}

impl Default for ReferrersApi {
    fn default() -> Self {
        ReferrersApi { is_there: true, filters: true, page: None, next_base: String::new() }
    }
}

/// The manifests whose `subject` is `digest`, as an image index (distribution-spec, referrers).
pub fn referrers(store: &Store, asked: &Asked, repository: &str, digest: &str) -> Reply {
    let api = &store.referrers;
    if !api.is_there {
        return Reply::new(StatusCode::NOT_FOUND).body("text/plain", "404 page not found\n");
    }
    let wanted = asked.parameter("artifactType").filter(|_| api.filters);
    let mut found = Vec::new();
    let manifests = store.repositories.get(repository).map(|r| &r.manifests);
    for (own, manifest) in manifests.into_iter().flatten() {
        let Ok(document) = serde_json::from_slice::<Value>(&manifest.bytes) else { continue };
        let artifact_type = document["artifactType"]
            .as_str()
            .or(document["config"]["mediaType"].as_str())
            .unwrap_or_default();
        let fits = wanted.is_none_or(|w| w == artifact_type);
        if document["subject"]["digest"] != digest || !fits {
            continue;
        }
        found.push(json!({
            "mediaType": manifest.media_type, "digest": own.to_string(),
            "size": manifest.bytes.len(), "artifactType": artifact_type,
            "annotations": document.get("annotations").cloned().unwrap_or_default(),
        }));
    }
    found.sort_by_key(|d| d["digest"].to_string());
    let start: usize = asked.parameter("after").and_then(|a| a.parse().ok()).unwrap_or(0);
    let end = api.page.map_or(found.len(), |page| found.len().min(start + page));
    let part = &found[start.min(end)..end];
    let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": part});
    let mut reply = Reply::new(StatusCode::OK).body(IMAGE_INDEX, index.to_string());
    if end < found.len() {
        let filter = wanted.map_or(String::new(), |w| format!("&artifactType={w}"));
        let next = format!("{}{}?after={end}{filter}", api.next_base, asked.path);
        reply = reply.with("link", format!("<{next}>; rel=\"next\""));
    }
    if wanted.is_some() { reply.with("oci-filters-applied", "artifactType") } else { reply }
}
