//! VMCOREINFO: the notes that a Linux kernel keeps of itself for a crash dump, found in its memory.
//!
//! Operation: the text stands at a page's start, `OSRELEASE=…` first, or behind the head of an ELF note of this name. It
//! is lines of `KEY=value`. Only a handful are used.
//!
//! Limits: RAM survives a reboot, and so do the notes of kernels that are dead; and a guest may write any number of
//! forged ones. Who uses them checks more.

use std::collections::HashSet;
use std::io;

use super::GuestPhysical;

/// Bytes the kernel keeps for the text.
const TEXT: usize = 4096;
/// Bytes of an ELF note before its text: three numbers, and the name padded to 12.
const NOTE_HEAD: u64 = 24;
/// Different texts that are looked at: more than a guest has kernels. What comes behind them is not.
pub const MAX_TEXTS: usize = 64;

const OSRELEASE: u64 = u64::from_le_bytes(*b"OSRELEAS");
/// Pages that are looked at at a time.
const AT_A_TIME: usize = 1024;
/// At byte 16 of a note, whose name is `VMCOREINFO`.
const NOTE_NAME: u64 = u64::from_le_bytes(*b"REINFO\0\0");

/// What is used of the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmCoreInfo {
    /// `uname -r`.
    pub release: String,
    /// Virtual address of the kernel's first page table.
    pub swapper_pg_dir: u64,
    /// Virtual address of its code.
    pub stext: u64,
    /// Virtual address of the memory sections' table.
    pub mem_section: u64,
    /// Where the page structures begin; since 6.12.
    pub vmemmap: Option<u64>,
    /// How far the kernel was moved in physical memory.
    pub phys_base: u64,
    /// Five levels of page tables?
    pub five_levels: bool,
    /// The bit that marks encrypted memory in page tables; 0 without.
    pub sme_mask: u64,
    /// `page_type` of a free block.
    pub buddy: Option<u32>,
    /// `page_type` of a slab; since 6.11.
    pub slab: Option<u32>,
    /// Where a page's `mapping` is, for kernels without BTF.
    pub mapping_offset: Option<u64>,
}

impl VmCoreInfo {
    /// Parses a text; what stands behind its first 0 is not read. `None`: it lacks what every kernel of this architecture
    /// has.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.split(|byte| *byte == 0).next()?;
        let value = |key: &str| {
            text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b"="))
        };
        let words = |key: &str| std::str::from_utf8(value(key)?).ok();
        let symbol = |name: &str| u64::from_str_radix(words(&format!("SYMBOL({name})"))?, 16).ok();
        // Signed decimal, most of them.
        let number = |name: &str| words(&format!("NUMBER({name})"))?.parse::<i64>().ok().map(i64::cast_unsigned);
        let release = words("OSRELEASE")?;
        let plain = !release.is_empty() && release.len() <= 64 && release.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then_some(())?;
        Some(VmCoreInfo {
            release: release.to_owned(),
            swapper_pg_dir: symbol("swapper_pg_dir")?,
            stext: symbol("_stext")?,
            mem_section: symbol("mem_section")?,
            vmemmap: symbol("vmemmap"),
            phys_base: number("phys_base")?,
            five_levels: number("pgtable_l5_enabled")? == 1,
            sme_mask: number("sme_mask").unwrap_or(0),
            buddy: number("PAGE_BUDDY_MAPCOUNT_VALUE").map(|value| value as u32),
            slab: number("PAGE_SLAB_MAPCOUNT_VALUE").map(|value| value as u32),
            mapping_offset: words("OFFSET(page.mapping)").and_then(|offset| offset.parse().ok()),
        })
    }
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// The different ones, in the order of their addresses; [`MAX_TEXTS`] at most.
    pub kernels: Vec<VmCoreInfo>,
    /// Texts that began as one and were none.
    pub malformed: u64,
    /// Pages looked at.
    pub pages: u64,
}

/// Looks through all pages with content.
///
/// # Errors
/// The host does not say which these are.
pub fn find(memory: &impl GuestPhysical) -> io::Result<Found> {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut text = [0; TEXT];
    let mut first = vec![[0; 3]; AT_A_TIME];
    let mut look = |from: u64, words: &[[u64; 3]]| {
        for (page, words) in (from..).step_by(4096).zip(words) {
            found.pages += 1;
            let start = match words {
                [OSRELEASE, ..] => page,
                [_, _, NOTE_NAME] => page + NOTE_HEAD,
                _ => continue,
            };
            if found.kernels.len() == MAX_TEXTS {
                continue;
            }
            // A note's text may go on in the next page, if there is one.
            let here = (page + 4096 - start) as usize;
            text.fill(0);
            let Some(first) = text.get_mut(..here) else { continue };
            if memory.copy(start, first).is_none() {
                continue;
            }
            if let Some(rest) = text.get_mut(here..) {
                let _ = memory.copy(page + 4096, rest);
            }
            match VmCoreInfo::parse(&text) {
                Some(kernel) if seen.insert(kernel.clone()) => found.kernels.push(kernel),
                Some(_) => {}
                None => found.malformed += 1,
            }
        }
    };
    memory.existing(&mut |from, to| {
        let mut from = from.next_multiple_of(4096);
        while from < to {
            let pages = ((to - from).div_ceil(4096) as usize).min(AT_A_TIME);
            let Some(words) = first.get_mut(..pages) else { break };
            memory.first_words(from, words);
            look(from, words);
            from += 4096 * pages as u64;
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "OSRELEASE=6.1.0-56-cloud-amd64\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff8ea10000\n\
        SYMBOL(_stext)=ffffffff8d000000\nSYMBOL(mem_section)=ffff8e2b5ffd8000\nOFFSET(page.mapping)=24\n\
        NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\nNUMBER(phys_base)=-12582912\nNUMBER(pgtable_l5_enabled)=0\n\0junk";

    #[test]
    fn a_text_at_a_pages_start_and_one_in_a_note_are_found_once_each() {
        let other = TEXT.replace("6.1.0", "6.2.0");
        let mut image = vec![0; 64 << 12];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x3000, TEXT.as_bytes());
        put(0x5000, TEXT.as_bytes());
        put(0x9000, b"\x0b\0\0\0\0\x10\0\0\0\0\0\0VMCOREINFO\0\0");
        put(0x9018, other.as_bytes());
        put(0xb010, TEXT.as_bytes());
        let found = find(&image.as_slice()).unwrap();
        let releases: Vec<_> = found.kernels.iter().map(|kernel| kernel.release.as_str()).collect();
        assert_eq!(releases, ["6.1.0-56-cloud-amd64", "6.2.0-56-cloud-amd64"]);
        assert_eq!((found.malformed, found.pages), (0, 64));
        let first = &found.kernels[0];
        assert_eq!(first.phys_base, (-12_582_912_i64).cast_unsigned());
        assert_eq!((first.buddy, first.vmemmap, first.mapping_offset), (Some(0xffff_ff7f), None, Some(24)));
    }

    #[test]
    fn memory_full_of_forged_texts_costs_one_look_at_each_page_and_a_bounded_list() {
        let mut image = vec![0; 1000 << 12];
        for (number, page) in image.chunks_mut(4096).enumerate() {
            let text = TEXT.replace("56", &number.to_string());
            let text = if number % 3 == 0 { text.replace("phys_base", "phys") } else { text };
            page[..text.len()].copy_from_slice(text.as_bytes());
        }
        let found = find(&image.as_slice()).unwrap();
        assert_eq!((found.kernels.len(), found.pages), (MAX_TEXTS, 1000));
        assert!(found.malformed > 0);
    }

    #[test]
    fn a_release_that_is_no_plain_word_is_refused() {
        for bad in ["", "a b", "\x1b[2J", &"x".repeat(65)] {
            assert_eq!(VmCoreInfo::parse(TEXT.replace("6.1.0-56-cloud-amd64", bad).as_bytes()), None, "{bad:?}");
        }
    }
}
