//! Asynchronous events: dword 0 of an Asynchronous Event Request's completion.

use super::Lid;

/// Asynchronous Event Type: DW0 bits 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEventType(pub u8);

impl AsyncEventType {
    /// Error status.
    pub const ERROR: Self = Self(0);
    /// SMART / Health status.
    pub const SMART: Self = Self(1);
    /// Notice.
    pub const NOTICE: Self = Self(2);
    /// Immediate.
    pub const IMMEDIATE: Self = Self(3);
    /// One shot.
    pub const ONE_SHOT: Self = Self(4);
    /// I/O command specific status.
    pub const IO_COMMAND: Self = Self(6);
    /// Vendor specific.
    pub const VENDOR: Self = Self(7);
}

/// An asynchronous event. After one is sent, others of its type wait until the host has read
/// `log_page` with RAE cleared (NVMe Base 2.1, Asynchronous Event Request command).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEvent {
    /// DW0 bits 2:0.
    pub event_type: AsyncEventType,
    /// DW0 bits 15:8.
    pub info: u8,
    /// DW0 bits 23:16: the log page to read.
    pub log_page: Lid,
}

impl AsyncEvent {
    /// Diagnostic failure.
    pub const DIAGNOSTIC_FAILURE: Self =
        Self::new(AsyncEventType::ERROR, 0x02, Lid::ERROR_INFORMATION);
    /// Persistent internal error.
    pub const PERSISTENT_INTERNAL_ERROR: Self =
        Self::new(AsyncEventType::ERROR, 0x03, Lid::ERROR_INFORMATION);
    /// Transient internal error.
    pub const TRANSIENT_INTERNAL_ERROR: Self =
        Self::new(AsyncEventType::ERROR, 0x04, Lid::ERROR_INFORMATION);
    /// NVM subsystem reliability.
    pub const RELIABILITY: Self = Self::new(AsyncEventType::SMART, 0x00, Lid::SMART);
    /// Temperature threshold.
    pub const TEMPERATURE_THRESHOLD: Self = Self::new(AsyncEventType::SMART, 0x01, Lid::SMART);
    /// Spare below threshold.
    pub const SPARE_BELOW_THRESHOLD: Self = Self::new(AsyncEventType::SMART, 0x02, Lid::SMART);
    /// Attached namespace attribute changed.
    pub const NAMESPACE_ATTRIBUTE_CHANGED: Self =
        Self::new(AsyncEventType::NOTICE, 0x00, Lid::CHANGED_NAMESPACES);
    /// Firmware activation starting.
    pub const FIRMWARE_ACTIVATION: Self =
        Self::new(AsyncEventType::NOTICE, 0x01, Lid::FIRMWARE_SLOT);
    /// Asymmetric Namespace Access change.
    pub const ANA_CHANGE: Self = Self::new(AsyncEventType::NOTICE, 0x03, Lid::ANA);
    /// Discovery log page change.
    pub const DISCOVERY_LOG_CHANGED: Self = Self::new(AsyncEventType::NOTICE, 0xf0, Lid::DISCOVERY);
    /// Reservation log page available.
    pub const RESERVATION_LOG: Self = Self::new(
        AsyncEventType::IO_COMMAND,
        0x00,
        Lid::RESERVATION_NOTIFICATION,
    );

    /// An event of any kind.
    #[must_use]
    pub const fn new(event_type: AsyncEventType, info: u8, log_page: Lid) -> Self {
        Self {
            event_type,
            info,
            log_page,
        }
    }

    /// CQE dword 0.
    #[must_use]
    pub const fn dw0(self) -> u32 {
        u32::from_le_bytes([self.event_type.0 & 7, self.info, self.log_page.0, 0])
    }

    /// From CQE dword 0.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        let [event_type, info, log_page, _] = dw0.to_le_bytes();
        Self::new(AsyncEventType(event_type & 7), info, Lid(log_page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dword_0() {
        let table = [
            (AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED, 0x04_0002),
            (AsyncEvent::ANA_CHANGE, 0x0c_0302),
            (AsyncEvent::DISCOVERY_LOG_CHANGED, 0x70_f002),
            (AsyncEvent::RESERVATION_LOG, 0x80_0006),
            (AsyncEvent::TRANSIENT_INTERNAL_ERROR, 0x01_0400),
            (AsyncEvent::SPARE_BELOW_THRESHOLD, 0x02_0201),
        ];
        for (event, dw0) in table {
            assert_eq!(event.dw0(), dw0);
            assert_eq!(AsyncEvent::from_dw0(dw0), event);
        }
        assert_eq!(
            AsyncEvent::from_dw0(0xff00_00f8).event_type,
            AsyncEventType::ERROR
        );
    }
}
