//! Builds the guest's file system: everything that it will ever have.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lab::exec::{command, run, stdout};

/// The tools that the lab runs.
const TOOLS: &[&str] = &[
    "ip",
    "tc",
    "nft",
    "nsenter",
    "bpftool",
    "curl",
    "nginx",
    "redis-server",
    "redis-cli",
    "redis-benchmark",
    "nats-server",
    "nghttpd",
    "wrk",
    "iperf3",
    "strace",
    "ss",
    "ls",
    "cat",
];
/// The modules that the lab and the agent need, where the kernel has them as modules.
const MODULES: &[&str] = &[
    "veth",
    "tun",
    "dummy",
    "bridge",
    "sch_ingress",
    "sch_netem",
    "cls_bpf",
    "tls",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "tcp_bbr",
    "nf_conntrack",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_numgen",
    "nft_objref",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_reject_inet",
];

/// What a guest is made of.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The kernel's directory: `vmlinuz`, and the package's content in `root`.
    pub directory: &'a Path,
    /// The test binaries, run one after another.
    pub binaries: &'a [PathBuf],
    /// Further programs for `/test`.
    pub with: &'a [PathBuf],
    /// MiB of memory.
    pub memory_mib: u32,
}

impl Guest<'_> {
    /// MiB that its files may take. The kernel unpacks the archive into half of the memory that the archive leaves; what
    /// has no room there is missing in the guest, with one line on its console. A third would just fit; tests write too.
    const fn room_mib(&self) -> u64 {
        self.memory_mib as u64 / 4
    }
}

/// Builds the archive and returns its path. Fails when it is too large for a guest of so much memory.
pub fn build(guest: &Guest<'_>, arguments: &[String]) -> Result<PathBuf> {
    let root = guest.directory.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    for directory in ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "test", "tmp", "var"] {
        fs::create_dir_all(root.join(directory)).context("laying out the guest")?;
    }
    install(&root, &which("busybox")?, Path::new("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh")).context("linking the guest's shell")?;
    for tool in TOOLS {
        let path = which(tool)?;
        install_with_libraries(&root, &path, &Path::new("bin").join(tool))?;
    }
    for program in guest.with.iter().chain(guest.binaries) {
        let name = program.file_name().with_context(|| format!("{} names no file", program.display()))?;
        let inside = Path::new("test").join(name);
        install_with_libraries(&root, program, &inside)?;
        // The whole file system lies in the guest's memory, and most of a debug build is for debuggers.
        run(&mut command("strip", [Path::new("--strip-debug"), &root.join(inside)]))?;
    }
    install_python(&root)?;
    install_postgresql(&root)?;
    let modules = install_modules(guest.directory, &root)?;
    write_texts(&root, guest, arguments, &modules)?;
    let archive = archive(&root, &guest.directory.join("initramfs.cpio"))?;
    let mib = fs::metadata(&archive).context("measuring the archive")?.len() >> 20;
    if mib > guest.room_mib() {
        bail!("the guest's files take {mib} MiB of its {}: give it more '--memory'", guest.memory_mib);
    }
    Ok(archive)
}

fn write_texts(root: &Path, guest: &Guest<'_>, arguments: &[String], modules: &[String]) -> Result<()> {
    let init = init_script(guest.binaries, arguments, modules);
    let texts = [
        ("init", init.as_str()),
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n\
             postgres:x:70:70:postgres:/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\npostgres:x:70:\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        // Without it glibc takes the first line of a name and hides its address of the other family.
        ("etc/host.conf", "multi on\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ];
    for (path, text) in texts {
        fs::write(root.join(path), text).with_context(|| format!("writing the guest's {path}"))?;
    }
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))
        .context("making init executable")
}

/// The first process of the guest. Its last line tells the host how the tests ended: with the code of the last one that
/// failed.
fn init_script(binaries: &[PathBuf], arguments: &[String], modules: &[String]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|argument| quote(argument)).collect();
    let tests = binaries.iter().map(|binary| {
        let name = quote(&binary.file_name().unwrap_or_default().to_string_lossy());
        format!("/test/{name} {} || code=$?", arguments.join(" "))
    });
    let tests: Vec<String> = tests.collect();
    let modules: Vec<String> = modules.iter().map(|module| format!("insmod /modules/{module}")).collect();
    format!(
        "#!/bin/sh\n\
         /bin/busybox --install -s /bin 2>/dev/null\n\
         export PATH=/bin HOME=/root CI=true SLUICE_BIN=/test/sluice {}=1\n\
         mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run\nmount -t tmpfs tmp /tmp\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\nmount -t bpf bpf /sys/fs/bpf\n\
         ip link set lo up\n{}\n\
         # Room for TCP as on a machine of 16 GiB: what a test floods is seen to before the kernel has no more.\n\
         echo 190000 253000 380000 > /proc/sys/net/ipv4/tcp_mem\n\
         ulimit -n 20000\ncd /test\ncode=0\n{}\n\
         echo \"{}$code\"\npoweroff -f\n",
        lab::emulated::VARIABLE,
        modules.join("\n"),
        tests.join("\n"),
        super::qemu::EXIT_MARK,
    )
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Copies the modules and returns their file names in the order of their dependence.
fn install_modules(directory: &Path, root: &Path) -> Result<Vec<String>> {
    let base = directory.join("root");
    let versions = base.join("lib/modules");
    let entry = fs::read_dir(&versions).with_context(|| format!("reading {}", versions.display()))?.next();
    let version = entry.context("the kernel's package holds no modules")??.file_name();
    let version = version.to_string_lossy().into_owned();
    let base = base.display().to_string();
    run(&mut command("depmod", ["-b", &base, &version]))?;
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for module in MODULES {
        // Built in, or unknown to this kernel: the test that needs it will tell.
        let shown = stdout(&mut command("modprobe", ["-d", &base, "-S", &version, "--show-depends", module]));
        for path in shown.unwrap_or_default().lines().filter_map(insmod_path) {
            if seen.insert(path.to_owned()) {
                names.push(install_module(Path::new(path), root)?);
            }
        }
    }
    Ok(names)
}

fn insmod_path(line: &str) -> Option<&str> {
    line.strip_prefix("insmod ")?.split_whitespace().next()
}

/// Busybox loads plain modules only.
fn install_module(path: &Path, root: &Path) -> Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (plain, unpack) = match name.rsplit_once('.') {
        Some((plain, "xz")) => (plain.to_owned(), Some("xz")),
        Some((plain, "zst")) => (plain.to_owned(), Some("zstd")),
        _ => (name, None),
    };
    let target = root.join("modules").join(&plain);
    if let Some(tool) = unpack {
        let path = path.display().to_string();
        let bytes = run(&mut command(tool, ["-dc", &path]))?.stdout;
        fs::write(&target, bytes).with_context(|| format!("writing {}", target.display()))?;
    } else {
        fs::copy(path, &target).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(plain)
}

/// Copies Python, in which some of the tests' peers are written. The program of that name on PATH may be a script that
/// starts another one.
fn install_python(root: &Path) -> Result<()> {
    const UNUSED: &[&str] = &[
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "site-packages",
        "test",
        "tkinter",
    ];
    const WHERE: &str = "import os, sys, sysconfig\n\
                         print(os.path.realpath(sys.executable))\nprint(sysconfig.get_path('stdlib'))";
    let said = stdout(&mut command("python3", ["-c", WHERE]))?;
    let (program, library) = said.trim().split_once('\n').context("python3 says where it is")?;
    let inside = program.strip_prefix('/').unwrap_or(program);
    install_with_libraries(root, Path::new(program), Path::new(inside))?;
    symlink(program, root.join("bin/python3")).context("linking the guest's Python")?;
    copy_tree(root, Path::new(library), &|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            return !UNUSED.contains(&&*name) && !name.starts_with("config-");
        }
        name.ends_with(".py") || name.ends_with(".so")
    })
}

/// Copies PostgreSQL's server and client, which find each other and their files by where they are.
fn install_postgresql(root: &Path) -> Result<()> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL: run 'scripts/setup'")?;
    let versions = versions.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let newest = versions.iter().max().context("/usr/lib/postgresql is empty")?;
    for program in ["initdb", "postgres", "psql"] {
        let path = newest.join("bin").join(program);
        install_with_libraries(root, &path, path.strip_prefix("/").unwrap_or(&path))?;
        symlink(&path, root.join("bin").join(program)).context("linking a program of PostgreSQL's")?;
    }
    install_with_libraries(root, &which("setpriv")?, Path::new("usr/bin/setpriv"))?;
    let has = |path: &Path, what: &str| path.to_string_lossy().contains(what);
    // Compiled queries need LLVM, which is larger than everything else together.
    copy_tree(root, &newest.join("lib"), &|path| !has(path, "llvm") && !has(path, "bitcode"))?;
    let share = Path::new("/usr/share/postgresql").join(newest.file_name().unwrap_or_default());
    copy_tree(root, &share, &|path| !has(path, "/man"))
}

/// Copies what `wanted` keeps of a directory to the same place in the guest.
fn copy_tree(root: &Path, directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if !wanted(&path) {
            continue;
        }
        let target = path.strip_prefix("/").unwrap_or(&path);
        if path.is_dir() {
            copy_tree(root, &path, wanted)?;
        } else if path.extension().is_some_and(|ending| ending == "so") {
            install_with_libraries(root, &path, target)?;
        } else {
            install(root, &path, target)?;
        }
    }
    Ok(())
}

fn install_with_libraries(root: &Path, from: &Path, to: &Path) -> Result<()> {
    install(root, from, to)?;
    // A static program has none, which ldd calls a failure.
    let listed = stdout(&mut command("ldd", [from])).unwrap_or_default();
    for library in listed.lines().filter_map(library_path) {
        let target = library.strip_prefix("/").unwrap_or(library);
        if !root.join(target).exists() {
            install(root, library, target)?;
        }
    }
    Ok(())
}

/// The path in a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x...)` or `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn library_path(line: &str) -> Option<&Path> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path).split(" (").next()?;
    path.starts_with('/').then(|| Path::new(path))
}

fn install(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let target = root.join(to);
    let parent = target.parent().context("a guest's file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::copy(from, &target)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), target.display()))
}

fn which(tool: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(tool))
        .find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("no program '{tool}': run 'scripts/setup --vm'"),
    }
}

fn archive(root: &Path, target: &Path) -> Result<PathBuf> {
    let script = format!(
        "cd {} && find . -print0 | cpio --null --create --format=newc --quiet > {}",
        quote(&root.display().to_string()),
        quote(&target.display().to_string()),
    );
    run(&mut command("sh", ["-c", &script]))?;
    Ok(target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tools_are_read() {
        let check =
            |line: &str, expected: Option<&str>| assert_eq!(library_path(line), expected.map(Path::new));
        check(
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)",
            Some("/lib/x86_64-linux-gnu/libc.so.6"),
        );
        check("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)", Some("/lib64/ld-linux-x86-64.so.2"));
        check("\tlinux-vdso.so.1 (0x00007f)", None);
        check("\tlibgone.so => not found", None);
        assert_eq!(insmod_path("insmod /x/veth.ko.xz "), Some("/x/veth.ko.xz"));
        assert_eq!(insmod_path("builtin veth"), None);
    }

    #[test]
    fn init_runs_the_binary_with_its_arguments_untouched() {
        let arguments = ["--exact".to_owned(), "it's".to_owned()];
        let script = init_script(&["/t/lab-1".into(), "/t/b-2".into()], &arguments, &["veth.ko".to_owned()]);
        for name in ["lab-1", "b-2"] {
            let line = format!("/test/'{name}' '--exact' 'it'\\''s' || code=$?\n");
            assert!(script.contains(&line), "{script}");
        }
        assert!(script.contains("insmod /modules/veth.ko\n"), "{script}");
    }
}
