//! The machines of the cluster together.

mod simulation;
