//! Module trees as data: a file, its `depends=`, and the order that follows.

use super::*;

/// A tree in a folder of its own; removed when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, builtin: &[&str], modules: &[(&str, &str)]) -> Tree {
        let tree = std::env::temp_dir().join(format!("vnic-modules-{name}-{}", std::process::id()));
        let folder = tree.join("kernel/drivers");
        fs::create_dir_all(&folder).expect("a folder");
        let builtin: String = builtin.iter().map(|name| format!("kernel/drivers/{name}.ko\n")).collect();
        fs::write(tree.join("modules.builtin"), builtin).expect("modules.builtin");
        for (name, depends) in modules {
            let content = format!("\u{7f}ELF\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(folder.join(format!("{name}.ko")), content).expect("a module");
        }
        Tree(tree)
    }

    fn select(&self) -> Result<Selection> {
        Selection::from_tree(&self.0, &[])
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// As Debian's 6.1 has it.
const MODULAR: &[(&str, &str)] = &[
    ("virtio", ""),
    ("virtio_ring", "virtio"),
    ("virtio_pci_modern_dev", ""),
    ("virtio_pci_legacy_dev", ""),
    ("virtio_pci", "virtio_pci_modern_dev,virtio_pci_legacy_dev,virtio,virtio_ring"),
    ("failover", ""),
    ("net_failover", "failover"),
    ("virtio_net", "net_failover,virtio,virtio_ring"),
    ("virtio_console", "virtio,virtio_ring"),
    ("vfio", ""),
    ("vfio-pci-core", "vfio"),
    ("vfio-pci", "vfio-pci-core,vfio"),
];

fn group<'a>(selection: &'a Selection, name: &str) -> &'a [String] {
    selection.groups.iter().find(|(group, _)| *group == name).map(|(_, names)| names.as_slice()).expect("the group")
}

#[test]
fn dependencies_come_first_and_each_module_once() {
    let selection = Tree::new("modular", &[], MODULAR).select().expect("a selection");
    for (name, depends) in MODULAR {
        for (_, order) in &selection.groups {
            let at = |name: &str| order.iter().position(|have| *have == name.replace('-', "_"));
            if let Some(place) = at(name) {
                for needed in depends.split(',').filter(|name| !name.is_empty()) {
                    assert!(at(needed).expect("in the same group") < place, "{needed} after {name}");
                }
            }
        }
    }
    let mut names: Vec<&str> = selection.modules.iter().map(|module| module.name.as_str()).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a module is in the image twice");
}

#[test]
fn names_in_the_list_are_the_kernels_and_files_may_have_dashes() {
    let selection = Tree::new("dashes", &[], MODULAR).select().expect("a selection");
    assert_eq!(group(&selection, "vfio"), ["vfio", "vfio_pci_core", "vfio_pci"]);
}

#[test]
fn what_is_built_in_needs_no_file() {
    let builtin = ["virtio", "virtio_ring", "virtio_pci", "virtio_console", "ext4"];
    let modules = [("failover", ""), ("net_failover", "failover"), ("virtio_net", "net_failover,virtio_ring,virtio")];
    let selection = Tree::new("builtin", &builtin, &modules).select().expect("a selection");
    assert_eq!(group(&selection, "base"), ["failover", "net_failover", "virtio_net"]);
    assert!(!selection.missing.contains(&"ext4"));
}

#[test]
fn a_tree_without_the_nics_driver_is_refused_by_name() {
    let error = Tree::new("lacking", &["virtio_pci"], &[("tls", "")]).select().expect_err("no virtio_net").to_string();
    assert!(error.contains("virtio_net"), "{error}");
}

#[test]
fn what_only_later_purposes_need_may_be_missing() {
    let selection = Tree::new("plain", &[], MODULAR).select().expect("a selection");
    assert!(selection.missing.contains(&"tls"));
    assert!(group(&selection, "tls").is_empty());
}

#[test]
fn a_circle_of_dependencies_is_an_error() {
    let circle = [("virtio_pci", "virtio"), ("virtio", "virtio_pci")];
    let error = Tree::new("circle", &[], &circle).select().expect_err("a circle").to_string();
    assert!(error.contains("circle"), "{error}");
}

#[test]
fn each_group_is_a_folder_in_loading_order_and_each_file_is_there_once() {
    let mut archive = Archive::default();
    Tree::new("folders", &[], MODULAR).select().expect("a selection").add_to(&mut archive);
    let paths: Vec<&str> = archive.paths().collect();
    for group in WANTED.iter().filter(|group| !group.extra) {
        assert!(paths.contains(&&*format!("lib/modules/{}", group.name)), "{}: {paths:?}", group.name);
    }
    assert!(!paths.iter().any(|path| path.starts_with("lib/modules/disk/")), "{paths:?}");
    let vfio: Vec<&str> = paths.iter().filter_map(|path| path.strip_prefix("lib/modules/vfio/")).collect();
    assert_eq!(vfio, ["00-vfio.ko", "01-vfio_pci_core.ko", "02-vfio_pci.ko"]);
}

#[test]
fn an_extra_group_is_only_there_for_who_asks() {
    let tree = Tree::new("extra", &[], &[MODULAR, &[("erofs", "")]].concat());
    let has = |extra: &[&str]| {
        Selection::from_tree(&tree.0, extra).expect("a selection").groups.iter().any(|(name, _)| *name == "erofs")
    };
    assert!(!has(&[]) && has(&["erofs"]));
    assert!(is_extra("erofs") && !is_extra("disk") && !is_extra("none"));
}

#[test]
fn what_two_groups_need_is_in_the_image_once() {
    let module = |name: &str| Module { name: name.to_owned(), content: b"code".to_vec() };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let selection = Selection {
        modules: vec![module("a"), module("b")],
        groups: vec![("first", names(&["a"])), ("second", names(&["a", "b"]))],
        ..Selection::default()
    };
    let mut archive = Archive::default();
    selection.add_to(&mut archive);
    let file = || Node::File(b"code".to_vec(), Access::Data);
    assert_eq!(archive.node("/lib/modules/first/00-a.ko"), Some(&file()));
    assert_eq!(archive.node("/lib/modules/second/00-a.ko"), Some(&Node::Link("/lib/modules/first/00-a.ko".to_owned())));
    assert_eq!(archive.node("/lib/modules/second/01-b.ko"), Some(&file()));
}
