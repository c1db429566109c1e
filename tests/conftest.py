"""What all tests share."""

import signal

# A shell that starts a command in the background has it ignore Ctrl-C, and its children too: the tests of
# interruptions send that signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
