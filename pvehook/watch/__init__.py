"""Who suffers: samples of the guest, of QEMU and of the host, and what they were before the backup."""
