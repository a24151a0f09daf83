//! Where a kernel function is (`/proc/kallsyms`), and where a member is in a kernel structure (BTF).

use std::fs;

/// The kernel's list of its functions.
#[derive(Debug)]
pub(super) struct Symbols(Result<String, String>);

impl Symbols {
    /// Reads it.
    pub(super) fn read() -> Symbols {
        Symbols(fs::read_to_string("/proc/kallsyms").map_err(|error| format!("/proc/kallsyms: {error}")))
    }

    /// One of these lines.
    #[cfg(test)]
    pub(super) fn of(list: &str) -> Symbols {
        Symbols(Ok(list.to_owned()))
    }

    /// The address of a function, or why there is none.
    pub(super) fn address_of(&self, function: &str) -> Result<u64, String> {
        address_in(self.0.as_ref().map_err(String::clone)?, function)
    }
}

fn address_in(list: &str, function: &str) -> Result<u64, String> {
    for line in list.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        if name == function && kind.eq_ignore_ascii_case("t") {
            return match u64::from_str_radix(address, 16) {
                Ok(0) | Err(_) => Err(format!("/proc/kallsyms hides the address of {function} from this user")),
                Ok(address) => Ok(address),
            };
        }
    }
    Err(format!("this kernel has no {function}"))
}

/// The offset of a member in a structure, bytes, from the kernel's own description of its types.
pub(super) fn offset_of(structure: &str, member: &str) -> Result<u32, String> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    let btf = fs::read(PATH).map_err(|error| format!("{PATH}: {error}"))?;
    offset_in(&btf, structure, member).ok_or_else(|| format!("{PATH} has no {structure}.{member}"))
}

/// Documentation/bpf/btf.rst: a header, then types of varying length, then strings.
fn offset_in(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    const MAGIC: u32 = 0xeb9f;
    const STRUCT: u32 = 4;
    let word = |at: usize| btf.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes);
    if word(0)? & 0xffff != MAGIC {
        return None;
    }
    let section = |offset: usize| Some((word(4)?.checked_add(word(offset)?)? as usize, word(offset + 4)? as usize));
    let (types, types_length) = section(8)?;
    let (strings, _) = section(16)?;
    let is = |name: u32, wanted: &str| {
        let rest = btf.get(strings.checked_add(name as usize)?..)?;
        rest.strip_prefix(wanted.as_bytes())?.first().map(|end| *end == 0)
    };
    let mut at = types;
    while at < types.checked_add(types_length)? {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let members = at + 12;
        if kind == STRUCT && is(name, structure) == Some(true) {
            let place = (0..count)
                .map(|index| members + 12 * index)
                .find(|&place| word(place).and_then(|name| is(name, member)) == Some(true))?;
            // With the kind flag the upper byte is a bit field's width.
            let bits = if info >> 31 == 1 { word(place + 8)? & 0xff_ffff } else { word(place + 8)? };
            return Some(bits / 8);
        }
        at = members
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_by_its_whole_name() {
        let list = "ffffffff81000000 T skb_copy_bits_more\nffffffff81000010 t skb_copy_bits\n0000000000000000 T hidden\n\
                    ffffffff82000000 D data\n";
        assert_eq!(address_in(list, "skb_copy_bits"), Ok(0xffff_ffff_8100_0010));
        assert!(address_in(list, "hidden").expect_err("0").contains("hides"));
        assert_eq!(address_in(list, "data"), Err("this kernel has no data".to_owned()));
    }

    /// `int` (4 bytes of its own), then `struct s { int a; int b; }`.
    fn small_btf() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0";
        let types: [u32; 4 + 3 + 6] = [1, 1 << 24, 4, 32, 5, 4 << 24 | 2, 8, 7, 1, 0, 9, 1, 32];
        let length = size_of_val(&types) as u32;
        let header = [0x1_eb9f_u32, 24, 0, length, length, strings.len() as u32];
        let mut btf: Vec<u8> = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).collect();
        btf.extend_from_slice(strings);
        btf
    }

    #[test]
    fn a_members_offset_is_read_from_the_types() {
        assert_eq!(offset_in(&small_btf(), "s", "b"), Some(4));
        assert_eq!(offset_in(&small_btf(), "s", "c"), None);
        assert_eq!(offset_in(&small_btf(), "t", "a"), None);
    }

    #[test]
    fn types_that_are_cut_off_are_none() {
        let btf = small_btf();
        for length in 0..60 {
            assert_eq!(offset_in(&btf[..length], "s", "b"), None, "{length}");
        }
    }
}
