//! A transfer as the wire protocol has it: prepared, begun when the host says so, told.

use anyhow::Result;
use vnic_experiment::row::PROGRAM;
use vnic_experiment::wire::{Event, TransferSpec};

use crate::rehearsal;
use crate::stage::Stage;
use crate::transfer::{Done, Prepared};
use crate::userspace::{self, How};

/// Does a transfer, with the host told and asked as the protocol has it.
///
/// # Errors
/// What failed; [`Unsupported`](crate::transfer::Unsupported).
pub fn transfer(stage: &mut dyn Stage, spec: TransferSpec) -> Result<Done> {
    if spec.method == userspace::METHOD {
        return userspace::transfer(stage, &spec, &How::default());
    }
    let filesystem = spec.filesystem.clone();
    let rehearsal = (spec.method == PROGRAM && spec.accounts).then(|| rehearsal::accounts(&spec));
    let prepared = Prepared::new(spec)?;
    stage.tell(&Event::TransferBegin {
        flow: prepared.flow,
        nic: prepared.nic,
        pages: prepared.pages.clone(),
        sha256: prepared.sha256().to_owned(),
        stream_bytes: prepared.stream_bytes(),
        filesystem,
    })?;
    stage.wait_for_first_go(prepared.file())?;
    let mut done = prepared.send(&mut |taken| {
        stage.tell(&Event::Paused { taken })?;
        stage.wait_for_go()
    })?;
    if let Some(rehearsal) = rehearsal {
        rehearsal::take_off(&mut done.accounts, rehearsal);
    }
    stage.tell(&done.told())?;
    Ok(done)
}
