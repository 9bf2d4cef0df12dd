//! Model -> [`RoutingTable`]: compiled, immutable, swapped whole.

mod table;

pub use table::{
    Action, Backend, Cluster, ClusterKey, Forward, Frontend, GatewayListener, HeaderOps, Route, RouteName, RoutingTable,
    TableVersion, Upstream, VirtualHost, WeightedBackend, Weights,
};
