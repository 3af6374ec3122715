# A key-value server: `set KEY VALUE` answers `ok`, `get KEY` answers the value.
use strict;
use warnings;
use IO::Socket::INET;

my ($port) = @ARGV;
my $listener = IO::Socket::INET->new(LocalPort => $port, Listen => 5, ReuseAddr => 1)
    or die "port $port: $@\n";
$SIG{PIPE} = 'IGNORE';

my %store;
while (my $client = $listener->accept) {
    while (my $line = <$client>) {
        chomp $line;
        my ($command, $key, $value) = split / /, $line, 3;
        if ($command eq 'set') {
            $store{$key} = $value;
            print $client "ok\n";
        } elsif ($command eq 'get') {
            print $client $store{$key} // 'not found', "\n";
        } else {
            print $client "unknown command\n";
        }
    }
}
