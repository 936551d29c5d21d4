//! A buildpack and an extension that together make a small application, and what runs them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What the extension does to the run image: new, changed, removed and replaced files, and a
/// configuration.
pub const DOCKERFILE: &str = "\
ARG base_image
FROM ${base_image}
USER root
ENV EXT_VAR=from-extension
LABEL io.buildpacks.rebasable=true
RUN echo extended > /extended.txt && rm -f /usr/share/doc/adduser/copyright && \\
    chmod 700 /opt/hl-a && rm -rf /usr/share/man && mkdir /usr/share/man && \\
    rm -rf /srv/made-anew && mkdir -p /srv/made-anew/inner && echo new >/srv/made-anew/inner/new
RUN echo second >> /extended.txt
ARG user_id
USER ${user_id}
";

/// What the application prints, when it runs on an image that `DOCKERFILE` has extended.
pub const GREETING: &str = "\
extended
second
of the application
1000:1000
from-extension
";

const BUILDPACK: &str = "\
api = \"0.10\"
[buildpack]
id = \"ex/bp\"
version = \"0.0.1\"
";

const EXTENSION: &str = "\
api = \"0.10\"
[extension]
id = \"ex/ext\"
version = \"0.0.1\"
";

const ORDER: &str = "\
[[order]]
[[order.group]]
id = \"ex/bp\"
version = \"0.0.1\"
[[order-extensions]]
[[order-extensions.group]]
id = \"ex/ext\"
version = \"0.0.1\"
";

const REQUIRE: &str = r#"#!/bin/sh
printf '[[requires]]\nname = "tool"\n' >"$CNB_BUILD_PLAN_PATH"
"#;

const PROVIDE: &str = r#"#!/bin/sh
printf '[[provides]]\nname = "tool"\n' >"$CNB_BUILD_PLAN_PATH"
"#;

const GENERATE: &str = r#"#!/bin/sh
cp "$CNB_EXTENSION_DIR/run.Dockerfile" "$CNB_OUTPUT_DIR/run.Dockerfile"
"#;

/// One layer for launch, with a program, which is the process `web`.
const BUILD: &str = r#"#!/bin/sh
set -eu
mkdir -p "$CNB_LAYERS_DIR/tool/bin"
printf '[types]\nlaunch = true\n' >"$CNB_LAYERS_DIR/tool.toml"
cat >"$CNB_LAYERS_DIR/tool/bin/serve" <<'END'
#!/bin/sh
cat /extended.txt file
echo "$(id -u):$(id -g)"
echo "$EXT_VAR"
END
chmod 755 "$CNB_LAYERS_DIR/tool/bin/serve"
printf '[[processes]]\ntype = "web"\ncommand = ["serve"]\ndefault = true\n' >"$CNB_LAYERS_DIR/launch.toml"
"#;

/// Puts buildpack, extension and order into `cnb`, and the application's sources into `workspace`.
pub fn write(cnb: &Path, workspace: &Path, dockerfile: &str) {
    let buildpack = cnb.join("buildpacks/ex_bp/0.0.1");
    file(&buildpack.join("buildpack.toml"), BUILDPACK);
    program(&buildpack.join("bin/detect"), REQUIRE);
    program(&buildpack.join("bin/build"), BUILD);
    let extension = cnb.join("extensions/ex_ext/0.0.1");
    file(&extension.join("extension.toml"), EXTENSION);
    file(&extension.join("run.Dockerfile"), dockerfile);
    program(&extension.join("bin/detect"), PROVIDE);
    program(&extension.join("bin/generate"), GENERATE);
    file(&cnb.join("order.toml"), ORDER);
    file(&workspace.join("file"), "of the application\n");
}

/// Writes `text` into `path`, whose parents are made.
pub fn file(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Writes `text` into `path`, as a program.
pub fn program(path: &Path, text: &str) {
    file(path, text);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
