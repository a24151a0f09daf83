//! The real program, and the script that fetches kernels for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[test]
fn bad_usage_is_one_sentence_and_exit_code_2() {
    for words in [
        &["--size", "16X"][..],
        &["--no-such-option"],
        &["--msix", "maybe"],
        &["--netdev", "user", "--hazard", "lease"],
    ] {
        let said = Command::new(env!("CARGO_BIN_EXE_run-qemu")).args(words).output().expect("it runs");
        let text = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.starts_with("run-qemu.sh: ") && text.ends_with(" (try run-qemu.sh --help)\n"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn help_names_every_option_of_the_contract() {
    let said = Command::new(env!("CARGO_BIN_EXE_run-qemu")).arg("--help").output().expect("it runs");
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success());
    for word in "--transfer --program --with --hazard --witness --filesystem --command --size --kernel --modules --newer-kernel \
        --debian-kernel --newer-qemu --link --client --netdev --accel --queue-pairs --iommu --nic-options --msix --memory --cpus \
        --run-dir --append --serve-options --print-command QEMU=PROGRAM VNIC=PROGRAM"
        .split_whitespace()
    {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
}

/// A repository with nothing in it but the scripts, on a machine whose apt has three kernels of one layout.
struct Scripts(PathBuf);

impl Scripts {
    fn new(layout: &str) -> Scripts {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{layout}"));
        // There is one from an earlier run, or none.
        let _ = fs::remove_dir_all(&root);
        for folder in ["scripts", "bin"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        for script in ["lib.sh", "get-kernel.sh"] {
            let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(script);
            fs::copy(real, root.join("scripts").join(script)).expect("a script");
        }
        let scripts = Scripts(root);
        scripts.tool(
            "apt-get",
            r#"case " $* " in *" download "*) shift 3; for package; do echo "$package" >>"$ROOT/asked"; echo "$package" >"$package.deb"; done ;; esac"#,
        );
        scripts.tool("xz", "");
        let needs = match layout {
            "old" => "",
            _ => "for part in base binary modules; do echo \"  Depends: linux-$part-${4#linux-image-}\"; done",
        };
        scripts.tool(
            "apt-cache",
            &format!(
                r#"case $3 in
                pkgnames) printf '%s\n' linux-image-7.3-cloud-amd64 linux-image-7.3.4+deb-cloud-amd64 linux-image-7.3.10+deb-cloud-amd64 linux-image-7.30.1+deb-cloud-amd64 ;;
                depends) case $4 in *-[0-9]*) {needs} ;; *) echo "  Depends: linux-image-6.1.0-1-cloud-amd64" ;; esac ;; esac"#
            ),
        );
        scripts.tool(
            "dpkg",
            r#"[ "$1" = -x ] || exit 1
            package=$(cat "$2") version=${package#linux-*-}
            case $package:$LAYOUT in
              linux-image*:old) files="boot/vmlinuz-$version lib/modules/$version/modules.builtin" ;;
              linux-binary*) files=usr/lib/modules/$version/vmlinuz ;;
              linux-base*) files=usr/lib/modules/$version/modules.builtin ;;
              linux-modules*) files=usr/lib/modules/$version/kernel/virtio_net.ko.xz ;;
              busybox*) files=bin/busybox ;;
            esac
            for file in $files; do mkdir -p "$3/$(dirname "$file")"; echo "$version" >"$3/$file"; done"#,
        );
        scripts
    }

    fn tool(&self, name: &str, text: &str) {
        let path = self.0.join("bin").join(name);
        fs::write(&path, format!("#!/bin/bash\n{text}\n")).expect("a tool");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can run");
    }

    fn get_kernel(&self, layout: &str, words: &[&str]) -> Output {
        let path = format!("{}:{}", self.0.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(self.0.join("scripts/get-kernel.sh"));
        command.args(words).env("PATH", path).env("ROOT", &self.0).env("LAYOUT", layout).output().expect("it runs")
    }

    /// The kernel's version, if it is there with all that is needed of it.
    fn kernel(&self, name: &str) -> String {
        let folder = self.0.join("target/guest/kernel").join(name);
        let modules = fs::read_to_string(folder.join("modules/modules.builtin")).expect("what is built in");
        let kernel = fs::read_to_string(folder.join("vmlinuz")).expect("a kernel");
        assert_eq!(kernel, modules);
        kernel.trim().to_owned()
    }
}

#[test]
fn kernels_of_either_layout_are_unpacked_once_to_the_same_names() {
    for layout in ["old", "new"] {
        let scripts = Scripts::new(layout);
        for words in [&[][..], &["--kernel", "7.3"], &["--kernel", "7.3"], &[]] {
            let said = scripts.get_kernel(layout, words);
            assert!(said.status.success(), "{layout} {words:?}: {}", String::from_utf8_lossy(&said.stderr));
        }
        assert_eq!(scripts.kernel("stable"), "6.1.0-1-cloud-amd64");
        assert_eq!(scripts.kernel("7.3"), "7.3.10+deb-cloud-amd64", "the newest of 7.3, which 7.30 is none of");
        let asked = fs::read_to_string(scripts.0.join("asked")).expect("packages were asked for");
        let expected = if layout == "old" { 3 } else { 9 };
        assert_eq!(asked.lines().count(), expected, "each once:\n{asked}");
    }
}

#[test]
fn a_kernel_that_is_not_to_be_had_is_exit_code_3() {
    let scripts = Scripts::new("none");
    for words in [["--kernel", "9.9"], ["--kernel", "nosuch"]] {
        let said = scripts.get_kernel("old", &words);
        let text = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(3), "{text}");
        assert!(text.ends_with(&format!("there is no kernel {} to be had from Debian\n", words[1])), "{text}");
    }
    let said = scripts.get_kernel("old", &["--kernel", "../../etc"]);
    assert_eq!(said.status.code(), Some(2));
}
