//! Opcodes of the Admin and NVM command sets.

/// Which way a command's data goes: bits 1:0 of every opcode (NVMe Base 2.1, Opcode field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// 00b: no data.
    None,
    /// 01b: from the host to the controller.
    HostToController,
    /// 10b: from the controller to the host.
    ControllerToHost,
    /// 11b: both ways; no command that is implemented here does that.
    Bidirectional,
}

impl Direction {
    /// The direction that an opcode's low bits name. For Fabrics commands (opcode 7Fh) the bits of
    /// FCTYPE count instead.
    #[must_use]
    pub const fn of(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

macro_rules! opcodes {
    ($(#[$tdoc:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)+ }) => {
        $(#[$tdoc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $type(pub u8);

        impl $type {
            $($(#[$doc])* pub const $name: Self = Self($value);)+

            /// The specification's name of the command.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($value => $text,)+
                    _ => "unknown command",
                }
            }
        }
    };
}

opcodes! {
    /// Opcode of an Admin command.
    AdminOpcode {
        /// Get Log Page.
        GET_LOG_PAGE = 0x02, "Get Log Page";
        /// Identify.
        IDENTIFY = 0x06, "Identify";
        /// Abort.
        ABORT = 0x08, "Abort";
        /// Set Features.
        SET_FEATURES = 0x09, "Set Features";
        /// Get Features.
        GET_FEATURES = 0x0a, "Get Features";
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c, "Asynchronous Event Request";
        /// Keep Alive.
        KEEP_ALIVE = 0x18, "Keep Alive";
        /// Fabrics command; FCTYPE says which.
        FABRICS = 0x7f, "Fabrics";
    }
}

opcodes! {
    /// Opcode of an NVM (I/O) command.
    NvmOpcode {
        /// Flush.
        FLUSH = 0x00, "Flush";
        /// Write.
        WRITE = 0x01, "Write";
        /// Read.
        READ = 0x02, "Read";
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
        /// Compare.
        COMPARE = 0x05, "Compare";
        /// Write Zeroes.
        WRITE_ZEROES = 0x08, "Write Zeroes";
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09, "Dataset Management";
        /// Verify.
        VERIFY = 0x0c, "Verify";
        /// Reservation Register.
        RESERVATION_REGISTER = 0x0d, "Reservation Register";
        /// Reservation Report.
        RESERVATION_REPORT = 0x0e, "Reservation Report";
        /// Reservation Acquire.
        RESERVATION_ACQUIRE = 0x11, "Reservation Acquire";
        /// Reservation Release.
        RESERVATION_RELEASE = 0x15, "Reservation Release";
        /// Copy.
        COPY = 0x19, "Copy";
        /// Fabrics command; FCTYPE says which.
        FABRICS = 0x7f, "Fabrics";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_is_in_the_low_bits() {
        assert_eq!(
            Direction::of(NvmOpcode::WRITE.0),
            Direction::HostToController
        );
        assert_eq!(
            Direction::of(NvmOpcode::READ.0),
            Direction::ControllerToHost
        );
        assert_eq!(Direction::of(NvmOpcode::FLUSH.0), Direction::None);
        assert_eq!(Direction::of(0xff), Direction::Bidirectional);
    }
}
