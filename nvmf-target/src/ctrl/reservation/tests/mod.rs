mod kept;
mod state;
