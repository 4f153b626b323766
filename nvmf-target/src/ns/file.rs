//! (in work)
#[derive(Debug)] pub struct FileBackend; #[derive(Debug)] pub struct FileOptions;
