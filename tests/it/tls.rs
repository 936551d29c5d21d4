//! A registry behind TLS: whom we trust, what a refusal says, what `--insecure` accepts.
//!
//! nginx ends TLS in front of the registry of the tests; openssl makes its authority.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::{Outcome, Room, run};
use crate::support::registry::Registry;

const LIMIT: Duration = Duration::from_secs(60);

/// nginx with a certificate for 127.0.0.1 from an authority that nobody knows.
struct Front {
    nginx: Child,
    host: String,
    authority: PathBuf,
}

impl Front {
    fn of(registry: &Registry, room: &Room) -> Self {
        let dir = room.path().join("tls");
        fs::create_dir(&dir).expect("a directory");
        let authority = certificates(&dir);
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let port = port.expect("a free port").port();
        let text = format!(
            "daemon off; master_process off; error_log {dir}/error.log; pid {dir}/pid;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
             server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {dir}/server.pem;\n\
             ssl_certificate_key {dir}/server.key;\n\
             location / {{ proxy_pass {url}; proxy_set_header Host $http_host; }} }} }}\n",
            dir = dir.display(),
            url = registry.url(),
        );
        fs::write(dir.join("nginx.conf"), text).expect("written");
        let nginx = Command::new("nginx")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .arg("-p")
            .arg(&dir)
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed: see tests/setup-debian.sh");
        let front = Front { nginx, host: format!("127.0.0.1:{port}"), authority };
        let until = Instant::now() + LIMIT;
        while std::net::TcpStream::connect(&front.host).is_err() {
            let log = fs::read_to_string(dir.join("error.log")).unwrap_or_default();
            assert!(Instant::now() < until, "nginx does not listen: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        front
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.nginx.kill();
        let _ = self.nginx.wait();
    }
}

fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new("openssl");
    run(command.args(args.split(' ')).current_dir(dir), LIMIT).success();
}

/// An authority, and in its name a certificate for 127.0.0.1; gives the authority's file.
fn certificates(dir: &Path) -> PathBuf {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        dir,
        &format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"),
    );
    openssl(dir, &format!("req {key} -subj /CN=registry -keyout server.key -out server.csr"));
    let extensions = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    fs::write(dir.join("extensions"), extensions).expect("written");
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out server.pem",
    );
    dir.join("ca.pem")
}

struct Setting {
    registry: Registry,
    front: Front,
    room: Arc<Room>,
    image: Image,
}

impl Setting {
    fn new() -> Self {
        let (registry, room) = (Registry::start(), Room::new());
        let layer = LayerBuilder::new().file("name", 0o644, "layoutfs\n");
        let image = ImageBuilder::new().layer(layer, Compression::Gzip).build();
        image.push(&registry, "team/app", "v1");
        let front = Front::of(&registry, &room);
        Setting { registry, front, room, image }
    }

    fn reference(&self) -> String {
        format!("{}/team/app:v1", self.front.host)
    }

    fn sparse(&self, to: &str, options: &[&str], trusted: Option<&Path>) -> Outcome {
        let to = self.room.path().join(to).display().to_string();
        let reference = self.reference();
        let args = [&["sparse", &reference, "--to", &to], options].concat();
        let mut command = self.room.command(&args);
        command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        if let Some(file) = trusted {
            command.env("SSL_CERT_FILE", file);
        }
        run(&mut command, LIMIT)
    }
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_with_what_to_do() {
    let setting = Setting::new();
    let outcome = setting.sparse("layout", &[], None);
    assert_eq!(outcome.code(), Some(6), "{outcome}");
    for part in ["certificate is not trusted", "SSL_CERT_FILE", "--insecure", &setting.front.host] {
        assert!(outcome.stderr.contains(part), "{part}: {outcome}");
    }
    assert_eq!(setting.registry.requests().len(), 0, "nothing was asked of whoever that is");
    assert!(!setting.room.path().join("layout").exists());
}

#[test]
fn a_certificate_of_a_named_authority_is_trusted_and_a_mount_reads_through_it() {
    let setting = Setting::new();
    setting.sparse("layout", &[], Some(&setting.front.authority)).success();
    let layout = setting.room.path().join("layout").display().to_string();
    let mnt = setting.room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let mnt_text = mnt.display().to_string();
    let mut command = setting.room.command(&["mount", &layout, &mnt_text]);
    run(command.env("SSL_CERT_FILE", &setting.front.authority), LIMIT).success();
    let read = fs::read(mnt.join("name"));
    setting.room.layoutfs(&["unmount", &mnt_text]);
    assert_eq!(read.expect("read"), b"layoutfs\n");
    let digest = setting.image.layers[0].digest;
    assert_eq!(setting.registry.bytes_sent(&digest), setting.image.layer_bytes());
}

#[test]
fn insecure_accepts_any_certificate() {
    let setting = Setting::new();
    setting.sparse("layout", &["--insecure"], None).success();
    let layout = setting.room.path().join("layout").display().to_string();
    let mount = setting.room.mount(&layout, &["--insecure"]);
    assert_eq!(fs::read(mount.path().join("name")).expect("read"), b"layoutfs\n");
}

#[test]
fn a_certificate_for_another_name_is_refused_although_its_authority_is_known() {
    let setting = Setting::new();
    let port = setting.front.host.rsplit(':').next().expect("a port");
    let reference = format!("localhost:{port}/team/app:v1");
    let to = setting.room.path().join("layout").display().to_string();
    let mut command = setting.room.command(&["sparse", &reference, "--to", &to]);
    let outcome = run(command.env("SSL_CERT_FILE", &setting.front.authority), LIMIT);
    assert_eq!(outcome.code(), Some(6), "{outcome}");
    assert!(outcome.stderr.contains("not trusted"), "{outcome}");
    assert_eq!(setting.registry.requests().len(), 0);
}
