//! A program's place at a TC hook of an interface: a link of its own from 6.6 on, before that a filter of the clsact
//! qdisc. Either way an earlier agent's program makes way in one step.

use std::os::fd::AsFd;

use aya::programs::links::FdLink;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
    qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};

use super::CaptureError;
use super::pins::{Link, Pins};

/// A side of an interface, and where a program of ours sits there.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The side.
    pub side: TcAttachType,
    /// What its pinned links are called, before the interface's index.
    pub pin: &'static str,
    /// Where its clsact filter sits; low numbers run first.
    pub priority: u16,
    /// The program that its link comes after, where that one is there; else it comes before all others.
    pub after: Option<&'static str>,
}

impl Place {
    /// The name of the pinned link of an interface.
    pub fn pin_of(&self, index: u32) -> String {
        format!("{}-{index}", self.pin)
    }
}

/// Capture's.
pub const CAPTURE: Place = Place { side: TcAttachType::Ingress, pin: "tc-ingress", priority: 1, after: None };
/// The handle of ours, which is always the same, so that the next agent's program takes its place.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x51ce);

/// What holds a program in its place.
pub enum Held {
    /// A link.
    Tcx(Link),
    /// A filter, known to the program's owner by this.
    Clsact(SchedClassifierLinkId),
}

/// Takes over the link of an earlier agent, or makes one that comes after another program, or else before all others.
pub fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &mut Pins,
    place: Place,
    (index, interface): (u32, &str),
    after: Option<LinkOrder>,
) -> Result<Held, CaptureError> {
    let failed = |error: ProgramError| refused(interface, &error);
    let name = place.pin_of(index);
    if let Some(link) = pins.take_over(&name, program.fd().map_err(failed)?.as_fd()) {
        return Ok(Held::Tcx(link));
    }
    let mut attach =
        |order| program.attach_with_options(interface, place.side, TcAttachOptions::TcxOrder(order));
    // Refused where that one is not on this interface.
    let made = match after.map(&mut attach) {
        Some(Ok(made)) => made,
        Some(Err(_)) | None => attach(LinkOrder::first()).map_err(failed)?,
    };
    let made =
        FdLink::try_from(program.take_link(made).map_err(failed)?).expect("a tcx link is a descriptor");
    pins.link(&name, made).map(Held::Tcx)
}

/// Replaces the filter of an earlier agent, or adds one.
pub fn attach_clsact(
    program: &mut SchedClassifier,
    place: Place,
    (interface, name): (&str, &str),
) -> Result<Held, CaptureError> {
    clsact(program, place, (interface, name)).map(Held::Clsact).map_err(|error| refused(interface, &error))
}

fn clsact(
    program: &mut SchedClassifier,
    Place { side, priority, .. }: Place,
    (interface, name): (&str, &str),
) -> Result<SchedClassifierLinkId, ProgramError> {
    let earlier = SchedClassifierLink::attached(interface, side, priority, CLSACT_HANDLE, None)
        .map_err(TcError::IoError)?;
    // Fails where there is none.
    if let Ok(link) = program.attach_to_link(earlier) {
        return Ok(link);
    }
    prepare_clsact(side, (interface, name))?;
    let options = NlOptions { priority, handle: CLSACT_HANDLE, ..NlOptions::default() };
    program.attach_with_options(interface, side, TcAttachOptions::Netlink(options))
}

/// Adds the qdisc where it is missing, and takes off filters of ours that are in another place.
fn prepare_clsact(side: TcAttachType, (interface, name): (&str, &str)) -> Result<(), TcError> {
    // The qdisc may be there already; if it could not be made, attaching says so.
    let _ = qdisc_add_clsact(interface);
    match qdisc_detach_program(interface, side, name) {
        Err(TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The cause that says something: aya wraps the kernel's errno in layers that only name the call.
pub fn refused(interface: &str, error: &ProgramError) -> CaptureError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let reason = format!(
        "the program cannot be attached: {cause}; `bpftool net` lists what is attached there already"
    );
    CaptureError::Interface { interface: interface.to_owned(), reason }
}
