//! The integration tests, as one binary.

mod attention;
mod bad_input;
mod capture;
mod checkpointing;
mod columns;
mod creation;
mod digits;
mod display;
mod engine;
mod fashion;
mod fusion;
mod fuzz;
mod gpt;
mod gradients;
mod indexing;
mod metal_text;
mod nn;
mod norms;
mod ops;
mod oracle;
mod process;
mod products;
mod reductions;
mod tidy;
mod torch;
#[cfg(feature = "soft-metal")]
mod traffic;
mod training;
mod transformers;
mod views;
