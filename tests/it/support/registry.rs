//! A distribution registry in this process: content put in by calls or by push, every request
//! recorded. Answers are made in `answer`, credentials checked in `tokens`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use layoutfs::layout::Digest;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::answer;
use super::faults::{Fault, Faults};
use super::referrers::ReferrersApi;
use super::tokens::{Auth, Tokens};
use super::wire::Wire;

/// A running registry. It has its own thread and runtime, so blocking tests may use it, and it
/// stops when dropped.
pub struct Registry {
    shared: Arc<Shared>,
    door: Option<UnboundedSender<Door>>,
    thread: Option<JoinHandle<()>>,
}

/// What the serving thread and the test both see.
pub struct Shared {
    pub address: SocketAddr,
    pub store: Mutex<Store>,
    pub faults: Faults,
    pub tokens: Tokens,
    records: Mutex<Vec<Record>>,
    print: Mutex<bool>,
}

/// What the registry holds.
#[derive(Default)]
pub struct Store {
    pub blobs: HashMap<Digest, Bytes>,
    pub repositories: BTreeMap<String, Repository>,
    pub uploads: HashMap<u64, Vec<u8>>,
    pub uploads_made: u64,
    pub redirect: Option<Redirect>,
    /// Changes when signed addresses are revoked.
    pub signing_secret: u64,
    /// Registries whose blobs are served here below `/storage/`, and taken below `/uploads/`.
    pub storage_of: Vec<Arc<Shared>>,
    pub upload_place: UploadPlace,
    pub referrers: ReferrersApi,
    /// Manifests have entity tags, and pushes may depend on them.
    pub has_versions: bool,
    /// What tags point to as soon as they were put: somebody else is always a little later.
    pub rivals: Vec<Digest>,
}

/// Where POST says that an upload goes on.
#[derive(Debug, Clone, Default)]
pub struct UploadPlace {
    /// Before the path: empty for this server without naming it.
    pub base: String,
    /// What has to come back in the query, as `state`.
    pub state: Option<String>,
    /// At another registry's `/uploads/` rather than here.
    pub is_elsewhere: bool,
}

/// One repository: blobs elsewhere in the registry are not visible here.
#[derive(Default)]
pub struct Repository {
    pub blobs: HashSet<Digest>,
    pub manifests: HashMap<Digest, Manifest>,
    pub tags: BTreeMap<String, Digest>,
}

/// A manifest's exact bytes and what they were called when put.
#[derive(Clone)]
pub struct Manifest {
    pub media_type: String,
    pub bytes: Bytes,
}

/// Blob reads are sent to another address for this long.
#[derive(Clone)]
pub struct Redirect {
    pub base: String,
    pub lifetime: Duration,
}

/// One request as it came, and what went back.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without the query, percent-decoded.
    pub path: String,
    pub query: String,
    pub range: Option<String>,
    pub host: String,
    /// The scheme of the `Authorization` header, when one came.
    pub authorization: Option<String>,
    /// 0 while not answered.
    pub status: u16,
    /// Body bytes handed to the connection. A client that leaves early has read fewer: what the
    /// socket buffers is counted.
    pub sent_bytes: u64,
}

/// A request whose body may still be on its way.
#[derive(Clone)]
pub struct Record {
    request: Request,
    sent_bytes: Arc<AtomicU64>,
}

enum Door {
    Shut(mpsc::Sender<()>),
    Open(mpsc::Sender<()>),
}

impl Registry {
    /// Starts on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on("127.0.0.1:0")
    }

    /// Starts on `address`; 127.0.0.2 is another host to a client.
    pub fn start_on(address: &str) -> Self {
        let (door, commands) = unbounded_channel();
        let (ready, started) = mpsc::channel();
        let address: SocketAddr = address.parse().expect("an address and port");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = bind(address).listen(BACKLOG).expect("a listening socket");
                let address = listener.local_addr().expect("a bound address");
                let shared = Arc::new(Shared::new(address));
                ready.send(Arc::clone(&shared)).expect("start waits");
                serve(shared, listener, commands).await;
            });
        });
        let shared = started.recv().expect("the registry starts");
        Registry { shared, door: Some(door), thread: Some(thread) }
    }

    /// `127.0.0.1:PORT`: what stands first in a reference.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.shared.address)
    }

    /// From now on clients must show these credentials. Earlier tokens die.
    pub fn set_auth(&self, auth: Auth) {
        self.shared.tokens.set(auth);
    }

    /// Every token given so far is refused from now on.
    pub fn revoke_tokens(&self) {
        self.shared.tokens.revoke();
    }

    /// Puts a blob into `repository`.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        self.store().put_blob(repository, digest, bytes);
        digest
    }

    /// Serves `bytes` as `digest`, whatever their true digest is.
    pub fn put_blob_as(&self, repository: &str, digest: Digest, bytes: impl Into<Bytes>) {
        self.store().put_blob(repository, digest, bytes.into());
    }

    /// Takes a blob out of every repository.
    pub fn remove_blob(&self, digest: &Digest) {
        let mut store = self.store();
        store.blobs.remove(digest);
        for repository in store.repositories.values_mut() {
            repository.blobs.remove(digest);
        }
    }

    /// Puts a manifest or image index, which nothing checks.
    pub fn put_manifest(
        &self,
        repository: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let manifest = Manifest { media_type: media_type.to_owned(), bytes };
        self.store().repository(repository).manifests.insert(digest, manifest);
        digest
    }

    /// Points `tag` to a manifest.
    pub fn tag(&self, repository: &str, tag: &str, digest: Digest) {
        self.store().repository(repository).tags.insert(tag.to_owned(), digest);
    }

    /// A manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(Digest, Manifest)> {
        self.store().manifest(repository, reference)
    }

    /// A blob's bytes.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.store().blobs.get(digest).cloned()
    }

    /// Blob reads are answered with 307 to a signed address at `storage`, good for `lifetime`;
    /// afterwards the storage says 403.
    pub fn redirect_blobs_to(&self, storage: &Registry, lifetime: Duration) {
        self.store().redirect = Some(Redirect { base: storage.url(), lifetime });
        storage.store().storage_of.push(Arc::clone(&self.shared));
    }

    /// POST says from now on that uploads go on there.
    pub fn set_upload_place(&self, place: UploadPlace) {
        self.store().upload_place = place;
    }

    /// Uploads go on at `storage`, which takes them without credentials.
    pub fn send_uploads_to(&self, storage: &Registry) {
        let state = Some("signed&by=us".to_owned());
        self.set_upload_place(UploadPlace { base: storage.url(), state, is_elsewhere: true });
        storage.store().storage_of.push(Arc::clone(&self.shared));
    }

    /// What the registry does about referrers from now on.
    pub fn set_referrers(&self, api: ReferrersApi) {
        self.store().referrers = api;
    }

    /// Manifests have entity tags from now on, and a push may depend on them.
    pub fn set_versions(&self) {
        self.store().has_versions = true;
    }

    /// The next tag that is put points to `rival` at once: another client has put that.
    pub fn overtake_next_tag(&self, rival: Digest) {
        self.store().rivals.push(rival);
    }

    /// Every signed address given so far is refused from now on.
    pub fn revoke_redirects(&self) {
        self.store().signing_secret += 1;
    }

    /// Adds a fault. The oldest one that matches a request acts on it.
    pub fn inject(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Faults that have not been used up.
    pub fn faults_left(&self) -> usize {
        self.shared.faults.left()
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Refuses connections and cuts those that stand, until `resume`. The port stays ours.
    pub fn pause(&self) {
        self.command(Door::Shut);
    }

    /// Listens again, on the same port.
    pub fn resume(&self) {
        self.command(Door::Open);
    }

    /// Prints a line per request to stdout.
    pub fn print_requests(&self) {
        *self.shared.print.lock().unwrap() = true;
    }

    /// All requests since the start or the last `clear`, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        let records = self.shared.records.lock().unwrap();
        records.iter().map(Record::now).collect()
    }

    /// The requests for one blob, here or (redirected) as a storage.
    pub fn blob_requests(&self, digest: &Digest) -> Vec<Request> {
        let digest = digest.to_string();
        let for_blob =
            |r: &Request| r.path.ends_with(&digest) && !r.path.contains("/manifests/sha");
        self.requests().into_iter().filter(for_blob).collect()
    }

    /// Body bytes sent for one blob.
    pub fn bytes_sent(&self, digest: &Digest) -> u64 {
        self.blob_requests(digest).iter().map(|r| r.sent_bytes).sum()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        self.shared.records.lock().unwrap().clear();
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap()
    }

    fn command(&self, door: impl FnOnce(mpsc::Sender<()>) -> Door) {
        let (done, wait) = mpsc::channel();
        let sent = self.door.as_ref().is_some_and(|d| d.send(door(done)).is_ok());
        assert!(sent && wait.recv().is_ok(), "the registry has stopped");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.door = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the registry panicked");
        }
    }
}

impl Shared {
    fn new(address: SocketAddr) -> Self {
        Shared {
            address,
            store: Mutex::default(),
            faults: Faults::default(),
            tokens: Tokens::new(address),
            records: Mutex::default(),
            print: Mutex::default(),
        }
    }

    /// Notes a request; gives where to count its body and to set its status.
    pub fn record(&self, request: Request) -> (usize, Arc<AtomicU64>) {
        let sent_bytes = Arc::new(AtomicU64::new(0));
        let mut records = self.records.lock().unwrap();
        records.push(Record { request, sent_bytes: Arc::clone(&sent_bytes) });
        (records.len() - 1, sent_bytes)
    }

    /// Notes how a request was answered.
    pub fn answered(&self, number: usize, sent_bytes: &Arc<AtomicU64>, status: u16) {
        let mut records = self.records.lock().unwrap();
        // After a `clear` the number may belong to another request, or to none.
        let record = records.get_mut(number).filter(|r| Arc::ptr_eq(&r.sent_bytes, sent_bytes));
        if let Some(record) = record {
            record.request.status = status;
            if *self.print.lock().unwrap() {
                let Request { method, path, range, .. } = &record.request;
                println!("{method} {path} {} -> {status}", range.as_deref().unwrap_or("-"));
            }
        }
    }
}

impl Record {
    fn now(&self) -> Request {
        let sent_bytes = self.sent_bytes.load(Ordering::Relaxed);
        Request { sent_bytes, ..self.request.clone() }
    }
}

impl Store {
    /// The repository, made when it is new.
    pub fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    /// Adds a blob to a repository.
    pub fn put_blob(&mut self, repository: &str, digest: Digest, bytes: Bytes) {
        self.blobs.insert(digest, bytes);
        self.repository(repository).blobs.insert(digest);
    }

    /// A blob, if this repository has it.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        let repository = self.repositories.get(repository)?;
        repository.blobs.contains(digest).then(|| self.blobs.get(digest).cloned())?
    }

    /// A manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(Digest, Manifest)> {
        let repository = self.repositories.get(repository)?;
        let digest = match reference.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => *repository.tags.get(reference)?,
        };
        Some((digest, repository.manifests.get(&digest)?.clone()))
    }
}

/// More than any test connects at once.
const BACKLOG: u32 = 1024;

/// A bound socket that does not listen. Two of them may share the port (SO_REUSEPORT), so that a
/// paused registry keeps it without a gap.
fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseport(true).expect("SO_REUSEPORT");
    socket.bind(address).expect("a free port");
    socket
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<tokio::net::TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => pending().await,
    }
}

/// Accepts until the handle is dropped.
async fn serve(shared: Arc<Shared>, first: TcpListener, mut doors: UnboundedReceiver<Door>) {
    let mut listener = Some(first);
    let mut held = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            door = doors.recv() => match door {
                Some(Door::Shut(done)) => {
                    held = held.take().or_else(|| Some(bind(shared.address)));
                    listener = None;
                    connections.shutdown().await;
                    done.send(()).expect("pause waits");
                }
                Some(Door::Open(done)) => {
                    if let Some(socket) = held.take() {
                        listener = Some(socket.listen(BACKLOG).expect("a listening socket"));
                    }
                    done.send(()).expect("resume waits");
                }
                None => return,
            },
            accepted = accept(listener.as_ref()) => if let Ok(stream) = accepted {
                let shared = Arc::clone(&shared);
                stream.set_nodelay(true).expect("TCP_NODELAY");
                connections.spawn(async move {
                    let (wire, flushes) = Wire::new(stream);
                    let service =
                        service_fn(|request| answer::answer(&shared, &flushes, request));
                    let http = http1::Builder::new();
                    // A connection that ends in an error is a client that left, or a fault.
                    let _ = http.serve_connection(TokioIo::new(wire), service).await;
                });
            },
        }
        while connections.try_join_next().is_some() {}
    }
}
