//! nvmf-proto
