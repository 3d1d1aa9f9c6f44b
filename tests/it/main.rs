//! The integration tests, as one binary.

mod autograd;
mod bad_input;
mod creation;
mod digits;
mod display;
mod engine;
mod fusion;
mod fuzz;
mod indexing;
mod metal_text;
mod norms;
mod ops;
mod oracle;
mod products;
mod reductions;
mod tidy;
mod torch;
mod views;
