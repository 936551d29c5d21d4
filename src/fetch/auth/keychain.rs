//! Where credentials are, and in which order we look: `CNB_REGISTRY_AUTH`, then the files of
//! podman and docker, then the programs that those name.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::super::{Deadline, Error, ErrorKind, Result};
use super::config_file::{ConfigFile, Place};
use super::{Credential, basic, external};
use crate::layout::reference::canonical_registry;

/// The largest credential file: docker's own are a few KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the environment and the command line say about credentials. Plain values: whoever builds
/// them decides, and nothing below reads the environment.
#[derive(Clone, Default)]
pub struct KeychainConfig {
    /// `CNB_REGISTRY_AUTH`: a JSON object from registry to `Authorization` value.
    pub cnb_registry_auth: Option<String>,
    /// `--authfile`: no other file is read then.
    pub authfile: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`: a directory.
    pub docker_config: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `PATH`: where credential programs are.
    pub path: Option<OsString>,
}

/// Finds credentials. Files are read anew each time: a login during a long mount is seen.
#[derive(Default)]
pub struct Keychain {
    from_environment: HashMap<String, Credential>,
    /// The file and whether the user named it: such a one has to be there.
    files: Vec<(PathBuf, bool)>,
    path: OsString,
}

/// The same file whatever the working directory becomes: files are read anew each time.
fn absolute(path: OsString) -> PathBuf {
    std::path::absolute(&path).unwrap_or_else(|_| PathBuf::from(path))
}

impl KeychainConfig {
    /// What this process was started with; no `--authfile`.
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(absolute);
        KeychainConfig {
            cnb_registry_auth: std::env::var("CNB_REGISTRY_AUTH").ok(),
            authfile: None,
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
            path: std::env::var_os("PATH"),
        }
    }

    /// The files in order (containers-auth.json(5), then docker's), with whether the user named it.
    fn files(&self) -> Vec<(PathBuf, bool)> {
        if let Some(file) = &self.authfile {
            return vec![(file.clone(), true)];
        }
        let below = |dir: &Option<PathBuf>, file: &str| dir.as_ref().map(|dir| dir.join(file));
        let containers_config = below(&self.xdg_config_home, "containers/auth.json")
            .or_else(|| below(&self.home, ".config/containers/auth.json"));
        let docker = below(&self.docker_config, "config.json")
            .or_else(|| below(&self.home, ".docker/config.json"));
        let unnamed = [
            self.registry_auth_file.clone(),
            below(&self.xdg_runtime_dir, "containers/auth.json"),
            containers_config,
            docker,
        ];
        unnamed.into_iter().flatten().map(|file| (file, false)).collect()
    }
}

impl Keychain {
    /// The keychain that `config` describes. No file is read yet.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] when `CNB_REGISTRY_AUTH` cannot be read; its value is not
    /// shown.
    pub fn new(config: &KeychainConfig) -> Result<Self> {
        let from_environment = match config.cnb_registry_auth.as_deref().map(str::trim) {
            None | Some("") => HashMap::new(),
            Some(json) => parse_environment(json)?,
        };
        let path = config.path.clone().unwrap_or_default();
        Ok(Keychain { from_environment, files: config.files(), path })
    }

    /// The credential for `repository` at `registry`.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] when a file or a program that should have it cannot be used.
    pub async fn credential(
        &self,
        registry: &str,
        repository: &str,
        deadline: Deadline,
    ) -> Result<Credential> {
        if let Some(credential) = self.from_environment.get(canonical_registry(registry)) {
            return Ok(credential.clone());
        }
        for (path, is_named) in &self.files {
            let Some(bytes) = read(path, *is_named)? else { continue };
            let name = path.display().to_string();
            let file = ConfigFile::parse(&bytes, &name)?;
            for place in file.places(registry, repository, &name)? {
                if let Some(credential) = self.at(place, deadline).await? {
                    tracing::debug!(registry, file = name, "credential found");
                    return Ok(credential);
                }
            }
        }
        Ok(Credential::Anonymous)
    }

    async fn at(&self, place: Place, deadline: Deadline) -> Result<Option<Credential>> {
        match place {
            Place::Here(credential) => Ok(Some(credential)),
            Place::Program { name, server, is_specific } => {
                match external::ask(&name, &server, &self.path, deadline).await {
                    // A program for all registries often comes with a file copied from a desktop, and
                    // is missing here. A public image needs none.
                    Err(error) if !is_specific => {
                        tracing::warn!("going on without credentials: {error}");
                        Ok(None)
                    }
                    answer => answer,
                }
            }
        }
    }
}

/// The file's bytes; `None` when it is not there, or is somebody else's.
fn read(path: &Path, is_named: bool) -> Result<Option<Vec<u8>>> {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let trouble = |reason: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::Authentication,
            format!("cannot read credentials from {}: {reason}", path.display()),
        )
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if is_named => return Err(trouble(&error)),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) if error.kind() == PermissionDenied => {
            tracing::warn!("going on without {}: {error}", path.display());
            return Ok(None);
        }
        Err(error) => return Err(trouble(&error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| trouble(&e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(trouble(&format_args!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    // `podman logout` and `touch` leave empty files.
    Ok(Some(bytes).filter(|bytes| !bytes.trim_ascii().is_empty()))
}

/// Reads `CNB_REGISTRY_AUTH`, as the lifecycle's `auth` package defines it.
fn parse_environment(json: &str) -> Result<HashMap<String, Credential>> {
    let wrong = |reason: &str| {
        Error::new(ErrorKind::Authentication, format!("environment CNB_REGISTRY_AUTH: {reason}"))
    };
    let values: HashMap<String, String> = serde_json::from_str(json)
        .map_err(|_| wrong("expected a JSON object from registry to header value"))?;
    let mut credentials = HashMap::new();
    for (registry, value) in values {
        let (scheme, token) = value.trim().split_once(char::is_whitespace).unwrap_or_default();
        let token = token.trim();
        let credential = match scheme.to_ascii_lowercase().as_str() {
            "basic" => basic::decode(token)
                .map(|(username, password)| Credential::Login { username, password }),
            "bearer" if !token.is_empty() => Some(Credential::Registry(token.to_owned())),
            "x-identity" if !token.is_empty() => Some(Credential::Identity(token.to_owned())),
            _ => None,
        };
        let credential = credential.ok_or_else(|| {
            let shown: String = registry.chars().take(100).collect();
            wrong(&format!("the value for {shown:?} is not Basic, Bearer or X-Identity"))
        })?;
        credentials.insert(canonical_registry(&registry).to_owned(), credential);
    }
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(config: &KeychainConfig) -> Vec<String> {
        config.files().iter().map(|(path, _)| path.display().to_string()).collect()
    }

    #[test]
    fn podmans_files_come_before_dockers_and_an_authfile_alone() {
        let mut config = KeychainConfig {
            xdg_runtime_dir: Some("/run/user/1".into()),
            home: Some("/home/ann".into()),
            ..KeychainConfig::default()
        };
        assert_eq!(
            paths(&config),
            [
                "/run/user/1/containers/auth.json",
                "/home/ann/.config/containers/auth.json",
                "/home/ann/.docker/config.json"
            ]
        );
        config.registry_auth_file = Some("/auth".into());
        config.xdg_config_home = Some("/config".into());
        config.docker_config = Some("/docker".into());
        let rest = ["/config/containers/auth.json", "/docker/config.json"];
        assert_eq!(paths(&config)[0], "/auth");
        assert_eq!(paths(&config)[2..], rest);
        config.authfile = Some("/mine".into());
        assert_eq!(paths(&config), ["/mine"]);
    }

    #[test]
    fn the_environment_holds_header_values_by_registry() {
        let json =
            r#"{"r.io":"Basic YW5uOnB3","b.io":"bearer  tok","docker.io":" X-Identity it "}"#;
        let found = parse_environment(json).expect("credentials");
        let login = Credential::Login { username: "ann".to_owned(), password: "pw".to_owned() };
        assert_eq!(found["r.io"], login);
        assert_eq!(found["b.io"], Credential::Registry("tok".to_owned()));
        assert_eq!(found["index.docker.io"], Credential::Identity("it".to_owned()));
    }

    #[test]
    fn a_broken_environment_is_an_error_without_its_value() {
        for json in ["x-secret", "[\"secret\"]", r#"{"r.io":"Basic secret"}"#, r#"{"r.io":"sec"}"#]
        {
            let error = parse_environment(json).expect_err("not credentials");
            assert_eq!(error.kind, ErrorKind::Authentication);
            assert!(!error.to_string().contains("sec"), "{error}");
        }
    }
}
