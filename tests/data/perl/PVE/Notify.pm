package PVE::Notify;

# In place of Proxmox's, which needs a cluster file system: writes down what it is called with. What it stands for is
# pve-cluster, src/PVE/Notify.pm, since libpve-notify-perl 8.0.7:
#
#     sub notify {
#         my ($severity, $template_name, $template_data, $fields, $config) = @_;

use strict;
use warnings;

use JSON::PP ();

sub notify {
    my ($given) = $ENV{PVEHOOK_TEST_GIVEN} =~ /(.*)/s;
    my ($does) = ($ENV{PVEHOOK_TEST_DOES} // '') =~ /(.*)/s;
    print "a module's own words\n";
    die { code => 500, message => "Could not instantiate\nnotification bus" } if $does eq 'raise';
    die "ipcc_send_rec[1] failed: Connection refused\n" if $does eq 'die';
    sleep 1 while $does eq 'hang';
    open(my $out, '>>', $given) or die "$given: $!\n";
    print {$out} JSON::PP->new->utf8->canonical->encode(\@_), "\n";
    close($out);
}

1;
