mod cut;
mod disk;
mod kept;
mod state;
