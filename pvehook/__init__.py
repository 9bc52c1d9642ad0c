"""pvehook keeps Proxmox VE backups from freezing the machines they back up."""

__version__ = "0.1.0"
