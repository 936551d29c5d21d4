# shellcheck shell=bash
# The second half of the demo, read by demo.sh: the unpatched buildpacks lifecycle extends a run
# image that is not here, and exports an application on it. docs/run-image-extension.md explains.

# What this takes; says what is missing, and fails.
extension_ready() {
    [ "$(id -u)" = 0 ] || { echo 'it mounts overlayfs, which takes root'; return 1; }
    [ "$(stat -f -c %T .)" != overlayfs ] ||
        { echo "$dir is on overlayfs, which takes no second one: TMPDIR on a volume will do"; return 1; }
    "$here/tests/lifecycle/build.sh" --check 2>reason || { tail -n 1 reason; return 1; }
    "$here/tests/setup-debian.sh" extension >reason 2>&1 || { tail -n 1 reason; return 1; }
    ! ldd /bin/busybox >reason 2>&1 ||
        { echo 'busybox is not static: install busybox-static'; return 1; }
}

# A buildpack and an extension, as small as they can be.
write_buildpacks() {
    local program
    mkdir -p cnb/buildpacks/demo_greet/1/bin cnb/extensions/demo_fortune/1/bin
    printf 'api = "0.10"\n[buildpack]\nid = "demo/greet"\nversion = "1"\n' \
        >cnb/buildpacks/demo_greet/1/buildpack.toml
    printf 'api = "0.10"\n[extension]\nid = "demo/fortune"\nversion = "1"\n' \
        >cnb/extensions/demo_fortune/1/extension.toml
    cat >cnb/order.toml <<'END'
[[order]]
[[order.group]]
id = "demo/greet"
version = "1"
[[order-extensions]]
[[order-extensions.group]]
id = "demo/fortune"
version = "1"
END
    cat >cnb/buildpacks/demo_greet/1/bin/detect <<'END'
#!/bin/sh
printf '[[requires]]\nname = "fortune"\n' >"$CNB_BUILD_PLAN_PATH"
END
    cat >cnb/buildpacks/demo_greet/1/bin/build <<'END'
#!/bin/sh
cat >"$CNB_LAYERS_DIR/launch.toml" <<'TOML'
[[processes]]
type = "web"
command = ["/bin/sh", "-c", "cat greeting /etc/fortune; echo $MOOD; id -u"]
default = true
TOML
END
    cat >cnb/extensions/demo_fortune/1/bin/detect <<'END'
#!/bin/sh
printf '[[provides]]\nname = "fortune"\n' >"$CNB_BUILD_PLAN_PATH"
END
    cat >cnb/extensions/demo_fortune/1/bin/generate <<'END'
#!/bin/sh
cp "$CNB_EXTENSION_DIR/run.Dockerfile" "$CNB_OUTPUT_DIR/"
END
    cat >cnb/extensions/demo_fortune/1/run.Dockerfile <<'END'
ARG base_image
FROM ${base_image}
USER root
ENV MOOD=cheerful
RUN echo 'made by RUN, in the run image' > /etc/fortune && rm -r /usr/share/doc/tool-1
ARG user_id
USER ${user_id}
END
    for program in cnb/*/*/*/bin/*; do chmod 755 "$program"; done
}

# A phase of the lifecycle, in a container on the build image: USER PROGRAM [ARG...]. What it says
# is in phase.log; what is wrong is shown.
phase() {
    local user=$1 name folder options=()
    shift
    printf '(user %s) $ %s\n' "$user" "$*"
    for name in PLATFORM_API EXPERIMENTAL_MODE LAYOUT_DIR USER_ID GROUP_ID NO_COLOR LOG_LEVEL; do
        name=CNB_$name
        options+=(--env "$name=${!name}")
    done
    for folder in layers layout-repo workspace platform; do
        options+=(--bind "$dir/$folder:/$folder")
    done
    layoutfs run oci:build-image -q --user "$user:$user" --env CNB_USE_LAYOUT=true \
        --bind "$dir/cnb:/cnb:ro" "${options[@]}" -- "/cnb/lifecycle/$1" "${@:2}" >phase.log 2>&1 || {
        cat phase.log >&2
        die "the $1 failed"
    }
}

show_extension() {
    local lifecycle kind run_image=layout-repo/reg.example/cnb/run/base
    local app=layout-repo/reg.example/app/latest
    [ -n "${LIFECYCLE_DIR:-}" ] || echo 'Building the lifecycle; the first time takes two minutes.'
    lifecycle=$("$here/tests/lifecycle/build.sh" "$here/target/fixtures" 2>lifecycle.log) ||
        { cat lifecycle.log >&2; die 'no lifecycle'; }
    kind=$(cat "$lifecycle/KIND")
    mkdir -p cnb layers layout-repo workspace platform
    cp -r "$lifecycle" cnb/lifecycle
    write_buildpacks
    echo 'hello' >workspace/greeting
    export CNB_PLATFORM_API=0.13 CNB_EXPERIMENTAL_MODE=quiet CNB_LAYOUT_DIR=/layout-repo
    export CNB_USER_ID=1000 CNB_GROUP_ID=1000 CNB_NO_COLOR=true CNB_LOG_LEVEL=warn
    start_registry --with-buildpack-images /bin/busybox
    cat registry.log
    echo "The lifecycle, $kind"
    case $kind in real:*) ;; *)
        echo 'NOT THE REAL KANIKO: a stand-in applies the Dockerfile here; all else is the lifecycle.' ;;
    esac
    layoutfs sparse "$address/demo/build:latest" --to build-image -q >/dev/null
    run layoutfs sparse "$address/demo/run:latest" --layout-dir layout-repo --as reg.example/cnb/run:base
    echo 'An earlier build has been here: of the run image, the indexes are known, and no bytes are left:'
    run layoutfs mount "$run_image" rootfs -q
    run layoutfs unmount rootfs
    run layoutfs cache prune
    moved

    title '9. The phases before the extender see a truly sparse directory'
    chown -R 1000:1000 layers layout-repo workspace
    phase 0 analyzer -run-image reg.example/cnb/run:base reg.example/app:latest
    phase 1000 detector -order /cnb/order.toml
    run sed -n '/^.run-image]/,/extend/p' layers/analyzed.toml
    phase 0 restorer
    phase 1000 builder
    echo 'What moved is the build image, in which they ran:'
    moved

    title '10. extend: the extender of the lifecycle, on the lazily mounted run image'
    run cat layers/generated/demo_fortune/run.Dockerfile
    # What kaniko tells of its steps is left out.
    TMPDIR=$dir run layoutfs extend --layers layers --layout-dir layout-repo --app workspace \
        --lifecycle cnb/lifecycle 2>&1 | sed '/level=info/d'
    moved

    title '11. Export and finalize: an application, of which the layers of the run image are not here'
    phase 0 exporter reg.example/app:latest
    run layoutfs finalize "$app" --extended layers/extended
    run layoutfs inspect "$app" | grep -v -e DiffID -e application/ -e pass -e index
    run du -sh "$app"
    moved

    title '12. Filled for good, it is an ordinary image'
    run layoutfs hydrate "$app"
    moved
    stop_registry
    layoutfs verify "$app" --deep -q >/dev/null
    run skopeo copy --quiet "oci:$app" oci-archive:app.tar
    run layoutfs run "$app" --offline -q | tee said
    [ "$(sed -n 2,5p said)" = $'hello\nmade by RUN, in the run image\ncheerful\n1000' ] ||
        die 'the application does not say what it should'
    layoutfs run "$app" --offline -q -- sh -c 'cd /usr/share/doc/tool-2 && ! cd ../tool-1 2>/dev/null' ||
        die 'what RUN removed is there'
}

if reason=$(extension_ready); then
    title '8. Buildpacks: a run image in the registry, which an extension changes'
    show_extension
else
    title '8 to 12 are left out'
    echo "Extending a run image with the buildpacks lifecycle: $reason"
fi
