//! From an image configuration to a container runtime's `config.json` (image-spec `conversion.md`,
//! runtime-spec), with what Docker gives a container by default.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType,
    LinuxResources, Mount, Process, Root, Spec, User,
};

use super::accounts::Credentials;
use super::error::{Error, Result};
use super::mount_points::MountPoint;

/// The runtime-spec version that every runtime in use understands.
const SPEC_VERSION: &str = "1.0.2";

/// The directory of the rootfs in a bundle.
pub const ROOTFS: &str = "rootfs";

/// `PATH` where the image sets none: Docker's.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's default set: enough for package managers, too little to leave the container.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What Docker hides, because it tells about the host or is unsafe to touch.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What Docker makes read-only, because writing there changes the host.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Destination, type and options of the mounts that every container has. `gid=5` is `tty`.
const MOUNTS: [(&str, &str, &str); 6] = [
    ("/proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "nosuid,noexec,nodev"),
    (SYS, "sysfs", "nosuid,noexec,nodev,ro"),
];

/// A sysfs of its own is for who owns the network namespace; root of a user namespace sees the
/// machine's, and may not write even what is delegated to its user there.
const SYS: &str = "/sys";
const SYS_BIND: &str = "rbind,rprivate,nosuid,noexec,nodev,ro,rro";

/// The network is the host's: registries and mirrors are reached as the caller reaches them.
const NAMESPACES: [LinuxNamespaceType; 4] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
];

/// A path of the host to be seen in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container: absolute, without `..`.
    pub destination: String,
    /// Nothing can be written through it.
    pub read_only: bool,
}

impl FromStr for Bind {
    type Err = String;

    /// `SRC:DST`, `SRC:DST:ro` or `SRC:DST:rw`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, read_only) = match parts.as_slice() {
            [source, destination] | [source, destination, "rw"] => (source, destination, false),
            [source, destination, "ro"] => (source, destination, true),
            _ => return Err("expected SRC:DST, SRC:DST:ro or SRC:DST:rw".to_owned()),
        };
        let names = || destination.split('/').filter(|n| !n.is_empty() && *n != ".");
        if source.is_empty() || !destination.starts_with('/') || names().any(|n| n == "..") {
            return Err("expected a source, and an absolute destination without ..".to_owned());
        }
        if names().next().is_none() {
            return Err("the destination / is the image itself".to_owned());
        }
        let destination = (*destination).to_owned();
        Ok(Bind { source: source.into(), destination, read_only })
    }
}

/// What a container is to be, beside what the image says.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program and its arguments; see [`arguments`].
    pub args: Vec<String>,
    /// `NAME=VALUE`, over the image's.
    pub env: Vec<String>,
    /// Who runs it.
    pub credentials: Credentials,
    /// In this order, after the mounts of every container.
    pub binds: Vec<Bind>,
    /// With a terminal of its own.
    pub terminal: bool,
    /// Where it starts; see [`working_directory`].
    pub working_directory: String,
    /// The host name inside.
    pub hostname: String,
    /// It runs in a user namespace, whose root may not do everything.
    pub user_namespace: bool,
}

/// What a container of the image runs: `command`, or the image's entrypoint and its arguments.
/// Empty when there is neither.
pub fn arguments(image: &ImageConfiguration, command: &[String]) -> Vec<String> {
    if !command.is_empty() {
        return command.to_vec();
    }
    let config = image.config().as_ref();
    let entrypoint = config.and_then(|c| c.entrypoint().clone()).unwrap_or_default();
    let cmd = config.and_then(|c| c.cmd().clone()).unwrap_or_default();
    [entrypoint, cmd].concat()
}

/// The user that the image asks for, in its own words; empty: root.
pub fn user(image: &ImageConfiguration) -> &str {
    image.config().as_ref().and_then(|c| c.user().as_deref()).unwrap_or_default()
}

/// The working directory that the image asks for: absolute.
pub fn working_directory(image: &ImageConfiguration) -> String {
    let config = image.config().as_ref();
    let directory = config.and_then(|c| c.working_dir().as_deref()).unwrap_or_default();
    format!("/{}", directory.trim_start_matches('/'))
}

/// What has to exist in the rootfs: the places of the mounts, and the working directory, which
/// runtimes make if it is missing. `bind_is_directory` says it of each bind.
pub fn mount_points(
    working_directory: &str,
    binds: &[Bind],
    bind_is_directory: impl Fn(&Bind) -> bool,
) -> Vec<MountPoint> {
    let directory = |path: String| MountPoint { path: path.into_bytes(), is_directory: true };
    let own = MOUNTS.iter().map(|(destination, ..)| *destination);
    // What lies in /dev lies in the tmpfs there.
    let own = own.filter(|destination| !destination.starts_with("/dev/"));
    let mut points: Vec<MountPoint> = own.map(|d| directory(d.to_owned())).collect();
    points.push(directory(working_directory.to_owned()));
    points.extend(binds.iter().map(|bind| MountPoint {
        path: bind.destination.clone().into_bytes(),
        is_directory: bind_is_directory(bind),
    }));
    points
}

/// The bytes of `config.json` for a bundle whose rootfs is in [`ROOTFS`].
///
/// # Errors
/// [`Error::Document`] for what JSON cannot say: a path that is not UTF-8.
pub fn config_json(image: &ImageConfiguration, setup: &Setup) -> Result<Vec<u8>> {
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(ROOTFS.into()).set_readonly(Some(false));
    spec.set_version(SPEC_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(Some(setup.hostname.clone()))
        .set_process(Some(process(image, setup)))
        .set_mounts(Some(mounts(setup)))
        .set_annotations(Some(annotations(image)))
        .set_linux(Some(linux(setup)));
    let failed = |e: serde_json::Error| Error::document("config.json", e.to_string());
    // Through a value, whose keys are sorted: the same setup gives the same bytes.
    let mut value = serde_json::to_value(&spec).map_err(failed)?;
    let sets = value.pointer_mut("/process/capabilities").and_then(|c| c.as_object_mut());
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let names = set.as_array_mut().into_iter();
        names.for_each(|names| names.sort_by_key(std::string::ToString::to_string));
    }
    serde_json::to_vec_pretty(&value).map_err(failed)
}

fn process(image: &ImageConfiguration, setup: &Setup) -> Process {
    let Credentials { uid, gid, additional_gids, .. } = &setup.credentials;
    let mut user = User::default();
    user.set_uid(*uid).set_gid(*gid);
    if !additional_gids.is_empty() {
        user.set_additional_gids(Some(additional_gids.clone()));
    }
    // Whoever is root has them; others have none, but can gain them through setuid programs.
    let all = Some(CAPABILITIES.into_iter().collect());
    let held = if *uid == 0 { all.clone() } else { None };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(all)
        .set_effective(held.clone())
        .set_permitted(held)
        .set_inheritable(None)
        .set_ambient(None);
    let mut process = Process::default();
    process
        .set_terminal(Some(setup.terminal))
        .set_user(user)
        .set_args(Some(setup.args.clone()))
        .set_env(Some(environment(image, setup)))
        .set_cwd(setup.working_directory.clone().into())
        .set_capabilities(Some(capabilities))
        // The caller's: a limit above the hard one would keep the container from starting.
        .set_rlimits(None)
        // sudo, ping and the like are part of an image.
        .set_no_new_privileges(Some(false));
    process
}

/// The image's environment, then what is missing in it, all under `setup.env`.
fn environment(image: &ImageConfiguration, setup: &Setup) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let images = image.config().as_ref().and_then(|c| c.env().clone()).unwrap_or_default();
    let mut defaults = vec![PATH.to_owned(), format!("HOME={}", setup.credentials.home)];
    defaults.push(format!("HOSTNAME={}", setup.hostname));
    if setup.terminal {
        defaults.push("TERM=xterm".to_owned());
    }
    // The last word on a name wins, and stands where the first was.
    let mut environment: Vec<String> = Vec::new();
    let known: BTreeSet<String> = images.iter().map(|v| name(v)).collect();
    let missing = defaults.into_iter().filter(|v| !known.contains(&name(v)));
    for variable in missing.chain(images.iter().cloned()).chain(setup.env.iter().cloned()) {
        let same = environment.iter_mut().find(|other| name(other) == name(&variable));
        match same {
            Some(other) => *other = variable,
            None => environment.push(variable),
        }
    }
    environment
}

fn mounts(setup: &Setup) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: PathBuf, options: &str| {
        let mut mount = Mount::default();
        mount
            .set_destination(destination.into())
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(source))
            .set_options(Some(options.split(',').map(str::to_owned).collect()));
        mount
    };
    let own = MOUNTS.iter().map(|(at, kind, options)| match *at {
        SYS if setup.user_namespace => mount(at, "bind", at.into(), SYS_BIND),
        _ => mount(at, kind, (*kind).into(), options),
    });
    let binds = setup.binds.iter().map(|bind| {
        // `ro` alone would leave what is mounted beneath the source writable.
        let options = if bind.read_only { "rbind,rprivate,ro,rro" } else { "rbind,rprivate,rw" };
        mount(&bind.destination, "bind", bind.source.clone(), options)
    });
    own.chain(binds).collect()
}

fn linux(setup: &Setup) -> Linux {
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    // No device but those that the runtime always gives, even to who can make nodes.
    let mut no_device = LinuxDeviceCgroup::default();
    no_device.set_allow(false).set_access(Some("rwm".to_owned()));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![no_device]));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(NAMESPACES.into_iter().map(namespace).collect()))
        .set_masked_paths(Some(MASKED.map(str::to_owned).to_vec()))
        .set_readonly_paths(Some(READ_ONLY.map(str::to_owned).to_vec()))
        // A user namespace has no devices to give, and its root no control groups.
        .set_resources(Some(resources).filter(|_| !setup.user_namespace));
    linux
}

/// The labels, over what `conversion.md` derives from other fields.
fn annotations(image: &ImageConfiguration) -> HashMap<String, String> {
    let config = image.config().as_ref();
    let stop_signal = config.and_then(|c| c.stop_signal().clone());
    let ports = config.and_then(|c| c.exposed_ports().clone()).map(|mut ports| {
        ports.sort();
        ports.join(",")
    });
    let derived = [
        ("os", Some(image.os().to_string())),
        ("os.version", image.os_version().clone()),
        ("architecture", Some(image.architecture().to_string())),
        ("variant", image.variant().clone()),
        ("author", image.author().clone()),
        ("created", image.created().clone()),
        ("stopSignal", stop_signal),
        ("exposedPorts", ports),
    ];
    let mut annotations: HashMap<String, String> = derived
        .into_iter()
        .filter_map(|(name, value)| {
            Some((format!("org.opencontainers.image.{name}"), value.filter(|v| !v.is_empty())?))
        })
        .collect();
    annotations.extend(config.and_then(|c| c.labels().clone()).unwrap_or_default());
    annotations
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image(config: Value) -> ImageConfiguration {
        let document = json!({ "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": [] } });
        serde_json::from_value(document).expect("an image configuration")
    }

    fn setup(env: &[&str], uid: u32) -> Setup {
        let home = "/home/cnb".to_owned();
        Setup {
            args: vec!["true".to_owned()],
            env: env.iter().map(|v| (*v).to_owned()).collect(),
            credentials: Credentials { uid, gid: 5, additional_gids: vec![7], home },
            binds: vec!["/a:/b:ro".parse().expect("a bind")],
            terminal: false,
            working_directory: "/srv/app".to_owned(),
            hostname: "layoutfs".to_owned(),
            user_namespace: false,
        }
    }

    fn converted(config: Value, setup: &Setup) -> Value {
        let bytes = config_json(&image(config), setup).expect("a configuration");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[test]
    fn a_command_replaces_the_entrypoint_and_its_arguments() {
        let image = image(json!({ "Entrypoint": ["/bin/x", "-y"], "Cmd": ["z"] }));
        assert_eq!(arguments(&image, &[]), ["/bin/x", "-y", "z"]);
        assert_eq!(arguments(&image, &["sh".to_owned()]), ["sh"]);
    }

    #[test]
    fn the_environment_is_the_images_under_the_users_with_path_and_home() {
        let config = json!({ "Env": ["A=1", "HOME=/x", "B=2"] });
        let spec = converted(config, &setup(&["B=3", "C=a=b"], 0));
        let expected = json!([PATH, "HOSTNAME=layoutfs", "A=1", "HOME=/x", "B=3", "C=a=b"]);
        assert_eq!(spec["process"]["env"], expected);
        let spec = converted(json!({ "Env": ["PATH=/only"] }), &setup(&[], 0));
        let expected = json!(["HOME=/home/cnb", "HOSTNAME=layoutfs", "PATH=/only"]);
        assert_eq!(spec["process"]["env"], expected);
    }

    #[test]
    fn the_process_is_as_the_image_and_docker_have_it() {
        let spec = converted(json!({ "WorkingDir": "srv/app" }), &setup(&[], 0));
        let process = &spec["process"];
        assert_eq!(process["cwd"], "/srv/app");
        assert_eq!(process["user"], json!({ "uid": 0, "gid": 5, "additionalGids": [7] }));
        assert_eq!(process["noNewPrivileges"], false);
        assert_eq!(process.get("rlimits"), None);
        let capabilities = process["capabilities"]["effective"].as_array().expect("a set");
        assert_eq!((capabilities.len(), &capabilities[0]), (14, &json!("CAP_AUDIT_WRITE")));
        let other = converted(json!({}), &setup(&[], 1000));
        assert_eq!(other["process"]["capabilities"].get("effective"), None);
        assert_eq!(other["linux"]["namespaces"].as_array().expect("a list").len(), 4);
    }

    #[test]
    fn a_user_namespace_is_not_asked_for_what_it_cannot_have() {
        let inside = Setup { user_namespace: true, ..setup(&[], 0) };
        let [machine, inside] = [setup(&[], 0), inside].map(|setup| converted(json!({}), &setup));
        assert!(machine["linux"]["resources"]["devices"].is_array());
        assert_eq!(inside["linux"].get("resources"), None);
        let kinds = |spec: &Value| {
            let mounts = spec["mounts"].as_array().expect("a list").clone();
            mounts.iter().map(|m| m["type"].to_string()).collect::<Vec<_>>()
        };
        let differing: Vec<_> = std::iter::zip(kinds(&machine), kinds(&inside))
            .filter(|(machine, inside)| machine != inside)
            .collect();
        assert_eq!(differing, [("\"sysfs\"".to_owned(), "\"bind\"".to_owned())]);
    }

    #[test]
    fn labels_win_over_derived_annotations() {
        let labels = json!({ "own": "x", "org.opencontainers.image.os": "mine" });
        let ports = json!({ "80/tcp": {}, "53/udp": {} });
        let config = json!({ "Labels": labels, "StopSignal": "SIGINT", "ExposedPorts": ports });
        let spec = converted(config, &setup(&[], 0));
        let annotations = json!({
            "own": "x",
            "org.opencontainers.image.os": "mine",
            "org.opencontainers.image.architecture": "amd64",
            "org.opencontainers.image.stopSignal": "SIGINT",
            "org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
        });
        assert_eq!(spec["annotations"], annotations);
    }

    #[test]
    fn the_same_setup_gives_the_same_bytes() {
        let bytes = || config_json(&image(json!({})), &setup(&[], 0)).expect("a configuration");
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn binds_are_read_and_what_cannot_be_meant_is_refused() {
        let bind: Bind = "data:/srv/data".parse().expect("a bind");
        assert_eq!((bind.read_only, &*bind.destination), (false, "/srv/data"));
        assert!("/a:/b:ro".parse::<Bind>().expect("a bind").read_only);
        for wrong in ["", "a", ":/b", "a:b", "a:/b:rx", "a:/b/../c", "a:/", "a:/.", "a:/b:ro:z"] {
            assert!(wrong.parse::<Bind>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn mounts_and_the_working_directory_need_a_place() {
        let bind: Bind = "/a:/etc/b".parse().expect("a bind");
        assert_eq!(working_directory(&image(json!({}))), "/");
        assert_eq!(working_directory(&image(json!({ "WorkingDir": "srv/app" }))), "/srv/app");
        let points = mount_points("/srv", &[bind], |_| false);
        let paths: Vec<_> = points.iter().map(|p| String::from_utf8_lossy(&p.path)).collect();
        assert_eq!(paths, ["/proc", "/dev", "/sys", "/srv", "/etc/b"]);
        assert!(points[3].is_directory && !points[4].is_directory);
    }
}
