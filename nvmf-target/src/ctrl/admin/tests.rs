//! Tests of the admin commands.
