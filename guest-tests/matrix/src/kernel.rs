//! Kernels by name: Debian's, which are fetched once, and one's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use guest_launcher::repository;
use vnic_experiment::row::COPY_SPLICE;

/// A kernel that a guest can boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// In the names of folders: its release, or what its owner calls it.
    pub(crate) name: String,
    pub(crate) image: PathBuf,
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// Those of these lists; what is missing of Debian's is fetched.
    pub(crate) fn all(lists: &[String]) -> Result<Vec<Kernel>> {
        let mut kernels: Vec<Kernel> = Vec::new();
        for list in lists {
            let found = match list.split_once('=') {
                Some((name, files)) => vec![Kernel::own(name, files)?],
                None => list.split(',').map(Kernel::debian).collect::<Result<_>>()?,
            };
            // Two names may be the same kernel's.
            kernels.extend(
                found
                    .into_iter()
                    .filter(|kernel| !kernels.iter().any(|other| other.name == kernel.name))
                    .collect::<Vec<_>>(),
            );
        }
        Ok(kernels)
    }

    /// The newest that Debian has today: asked anew each time.
    pub(crate) fn newest() -> Result<Kernel> {
        let status = Command::new(repository().join("scripts/get-kernel.sh")).arg("--newest").status();
        ensure!(status.context("get-kernel.sh")?.success(), "there is no newest kernel to be had");
        Kernel::debian("newest")
    }

    /// `BZIMAGE,MODULES`
    fn own(name: &str, files: &str) -> Result<Kernel> {
        let (image, modules) = files.split_once(',').context(
            "a kernel of your own is NAME=BZIMAGE,MODULES, say mine=arch/x86/boot/bzImage,lib/modules/7.3.0",
        )?;
        ensure!(Path::new(image).is_file(), "there is no kernel {image}");
        ensure!(Path::new(modules).is_dir(), "there is no folder {modules} with the kernel's modules");
        ensure!(is_a_name(name), "{name:?} cannot be a folder's name: letters, digits, dots, + and - only");
        Ok(Kernel { name: name.to_owned(), image: image.into(), modules: modules.into() })
    }

    fn debian(which: &str) -> Result<Kernel> {
        ensure!(is_a_name(which), "{which:?} is neither a version nor a suite of Debian's");
        let folder = repository().join("target/guest/kernel").join(which);
        if !folder.join("vmlinuz").exists() {
            let status = Command::new(repository().join("scripts/get-kernel.sh")).args(["--kernel", which]).status();
            ensure!(status.context("get-kernel.sh")?.success(), "there is no kernel {which} to be had");
        }
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        let name = folder.file_name().unwrap_or_default().display().to_string();
        Ok(Kernel { name, image: folder.join("vmlinuz"), modules: folder.join("modules") })
    }
}

impl Kernel {
    /// The module that rows name which ask what if (`guest-tests/kernel/`), built for this kernel; or why there is none.
    pub(crate) fn module(&self, name: &str) -> Result<PathBuf, String> {
        let beside = self.image.with_file_name(format!("{name}.ko"));
        if name != COPY_SPLICE {
            return Err(format!("there is no kernel module {name} in guest-tests/kernel"));
        }
        let ours = self
            .image
            .parent()
            .is_some_and(|folder| folder.ends_with(Path::new("target/guest/kernel").join(&self.name)));
        if !ours {
            let why = || format!("{} is not there: build guest-tests/kernel for this kernel", beside.display());
            return if beside.is_file() { Ok(beside) } else { Err(why()) };
        }
        let script = Command::new(repository().join("scripts/build-module.sh")).arg(&self.name).output();
        let script = script.map_err(|error| format!("build-module.sh: {error}"))?;
        if script.status.success() {
            return Ok(beside);
        }
        let said = String::from_utf8_lossy(&script.stderr);
        Err(said
            .lines()
            .next_back()
            .unwrap_or("build-module.sh failed")
            .trim_start_matches("build-module.sh: ")
            .to_owned())
    }
}

/// Can it stand between the commas of a folder's name?
fn is_a_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".+-_~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_ones_own_is_named_by_its_owner() {
        let folder = std::env::temp_dir();
        let image = folder.join(format!("vnic-matrix-kernel-{}", std::process::id()));
        std::fs::write(&image, "x").unwrap();
        let files = format!("{},{}", image.display(), folder.display());
        assert_eq!(Kernel::all(&[format!("mine={files}")]).unwrap()[0].name, "mine");
        for bad in
            [format!("../x={files}"), format!("a,b={files}"), "mine=/nowhere,/tmp".to_owned(), "mine=x".to_owned()]
        {
            assert!(Kernel::all(std::slice::from_ref(&bad)).is_err(), "{bad}");
        }
        std::fs::remove_file(image).unwrap();
    }
}
