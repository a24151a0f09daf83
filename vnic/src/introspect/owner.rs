//! Whose memory an anonymous page is: the mappings that may have it, and of them one whose page table leads to it.

use super::GuestPhysical;
use super::kernel::{Kernel, Page};
use super::space::{Reader, Stop};

/// A process that has the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) program: String,
    pub(super) pid: u32,
    pub(super) address: u64,
}

/// Longest name of a program, bytes.
const COMM: usize = 15;

impl Kernel {
    /// A process that maps the page, by the tree of mappings of an `anon_vma`.
    pub(super) fn owner(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        anon_vma: u64,
        page: &Page,
    ) -> Result<Option<Owner>, Stop> {
        let at = &self.layout;
        let mut nodes = vec![reader.word(anon_vma.wrapping_add(at.anon_root))?];
        while let Some(node) = nodes.pop() {
            if node == 0 {
                continue;
            }
            let vma = reader.word(node.wrapping_sub(at.chain_node).wrapping_add(at.chain_vma))?;
            if let Some(owner) = self.owner_by_vma(reader, vma, page)? {
                return Ok(Some(owner));
            }
            nodes.push(reader.word(node.wrapping_add(at.node_right))?);
            nodes.push(reader.word(node.wrapping_add(at.node_left))?);
        }
        Ok(None)
    }

    /// A process that maps a merged page, by the kernel's list of who had it.
    pub(super) fn owner_of_merged(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        node: u64,
        page: &Page,
    ) -> Result<Option<Owner>, Stop> {
        let Some(ksm) = self.layout.ksm else { return Ok(None) };
        let mut link = reader.word(node.wrapping_add(ksm.node_first))?;
        while link != 0 {
            let item = link.wrapping_sub(ksm.item_hlist);
            let mm = reader.word(item.wrapping_add(ksm.item_mm))?;
            let address = reader.word(item.wrapping_add(ksm.item_address))? & !0xfff;
            if let Some(owner) = self.owner_by_mm(reader, mm, address, page)? {
                return Ok(Some(owner));
            }
            link = reader.word(link)?;
        }
        Ok(None)
    }

    fn owner_by_vma(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        vma: u64,
        page: &Page,
    ) -> Result<Option<Owner>, Stop> {
        let at = &self.layout;
        let start = reader.word(vma.wrapping_add(at.vma_start))?;
        let end = reader.word(vma.wrapping_add(at.vma_end))?;
        let first = match at.vma_anon_pgoff {
            Some((low, high)) => {
                let half = |offset| reader.half(vma.wrapping_add(offset)).map(u64::from);
                half(low)? | half(high)? << 32
            }
            None => reader.word(vma.wrapping_add(at.vma_pgoff))?,
        };
        let address = page.index.checked_sub(first).and_then(|pages| start.checked_add(pages.checked_mul(4096)?));
        let Some(address) = address.filter(|address| *address < end) else { return Ok(None) };
        let mm = reader.word(vma.wrapping_add(at.vma_mm))?;
        self.owner_by_mm(reader, mm, address, page)
    }

    /// The process that `mm` belongs to, if its page table leads from `address` to the page.
    fn owner_by_mm(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        mm: u64,
        address: u64,
        page: &Page,
    ) -> Result<Option<Owner>, Stop> {
        let at = &self.layout;
        let root = reader.physical(reader.word(mm.wrapping_add(at.mm_pgd))?)?;
        if reader.walk(root, address)? != Some(page.number << 12) {
            return Ok(None);
        }
        let task = reader.word(mm.wrapping_add(at.mm_owner))?;
        if task == 0 || reader.word(task.wrapping_add(at.task_mm))? != mm {
            return Ok(None);
        }
        let program = reader.text(task.wrapping_add(at.task_comm), COMM)?;
        let pid = reader.half(task.wrapping_add(at.task_tgid))?;
        Ok(Some(Owner { program: String::from_utf8_lossy(&program).into_owned(), pid, address }))
    }
}
