//! The machines of the cluster together.

mod model_check;
mod simulation;
