package PVE::INotify;

use strict;
use warnings;

sub nodename { return 'pve1'; }

1;
