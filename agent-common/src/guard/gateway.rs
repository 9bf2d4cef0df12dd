//! Which limits a frame is held to: those of the Gateway that it is sent to.

use super::Inspected;
use crate::limit::LimitEnd;
use crate::packet::Family;
use crate::policy::PolicyAddress;

/// What the guard looks up.
pub trait GatewayMaps {
    /// The limits of an address and port.
    type Limits;
    /// Those of this very one.
    fn limits(&self, end: &LimitEnd) -> Option<Self::Limits>;
    /// Whether an address is the node's own.
    fn is_own(&self, address: &[u8; 16]) -> bool;
}

impl Inspected {
    /// Who sends it, as limits have it.
    #[inline(always)]
    pub fn sender(&self) -> PolicyAddress {
        PolicyAddress { family: number(self.family), address: self.source }
    }

    /// The limits of the listener that it is sent to. One that has no address of its own is met at all of the node's; what is
    /// sent on to others is none of its business.
    #[inline(always)]
    pub fn gateway_limits<M: GatewayMaps>(&self, maps: &M) -> Option<M::Limits> {
        let Self { destination, sent, family, .. } = self;
        if sent.protocol == 0 {
            return None;
        }
        let at = |address| LimitEnd {
            address,
            port_be: sent.port_be,
            family: number(*family),
            protocol: sent.protocol,
        };
        if let Some(limits) = maps.limits(&at(*destination)) {
            return Some(limits);
        }
        let limits = maps.limits(&at([0; 16]))?;
        maps.is_own(destination).then_some(limits)
    }
}

#[inline(always)]
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}
