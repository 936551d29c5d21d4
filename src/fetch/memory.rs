//! How much memory there is for this process: the machine's, and its control group's limit.

/// Bytes that programs can have without swapping, at most those of this process' control group;
/// `None` where the kernel does not tell.
pub fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = of_machine(&read("/proc/meminfo")?)?;
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).filter_map(|path| read(&path)?.trim().parse().ok());
    Some(limits.fold(machine, u64::min))
}

/// `MemAvailable` of `/proc/meminfo` (proc_meminfo(5)), in bytes.
fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where the limits of the groups in `/proc/self/cgroup` are (cgroups(7)): a number, or `max`, which
/// is none.
fn limit_files(groups: &str) -> impl Iterator<Item = String> {
    groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_end_matches('/');
        if controllers.is_empty() {
            return Some(format!("/sys/fs/cgroup{path}/memory.max"));
        }
        let is_memory = controllers.split(',').any(|controller| controller == "memory");
        is_memory.then(|| format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_is_its_available_memory() {
        let meminfo =
            "MemTotal:       24669064 kB\nMemFree:         1 kB\nMemAvailable:   20000 kB\n";
        assert_eq!(of_machine(meminfo), Some(20_000 * 1024));
        assert_eq!(of_machine("MemTotal: 1 kB\n"), None);
        assert_eq!(of_machine("MemAvailable: 99999999999999999999 kB"), None);
        assert_eq!(
            of_machine("MemAvailable: 18014398509481984 kB"),
            None,
            "beyond 64 bits in bytes"
        );
    }

    #[test]
    fn limits_are_where_either_version_of_control_groups_has_them() {
        let found = |groups| limit_files(groups).collect::<Vec<_>>();
        assert_eq!(found("0::/a/b\n"), ["/sys/fs/cgroup/a/b/memory.max"]);
        assert_eq!(found("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        let hybrid = "5:devices:/\n4:cpu,memory:/x:y\n0::/\nnonsense\n";
        let expected =
            ["/sys/fs/cgroup/memory/x:y/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"];
        assert_eq!(found(hybrid), expected);
    }
}
