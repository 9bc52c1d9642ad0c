"""What Proxmox VE says to us, as types: phases, hook calls, configurations. No I/O."""
