"""What a release has to pass beside the tests: checks that take minutes, programs or a network.

``make release`` is ``python book/tools/release`` after ``make formats``; names of checks after it
run these alone. A file a check:

* ``tools``: the programs that the others call, each with the way to get it;
* ``versions``: one version in all places, and nothing that is not committed;
* ``downloads``: epubcheck, and every notebook of both archives from the first cell to the last;
* ``package``: wheel and sdist as others get them, in environments that have nothing else
  (``environments`` makes them, ``trial`` is what runs inside);
* ``road``: the commands that the README gives to those without ``make``, in a fresh clone.
"""
