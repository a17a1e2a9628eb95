#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What summary.sh tells of a run: skipped programs with their words, tests skipped inside programs,
# failures, and the counts. Usage: test_summary.sh SOURCE_DIR
set -eu
summary=$1/tests/summary.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/junit.xml" << 'END'
<testsuite name="x" tests="5" failures="1" skipped="1">
	<testcase name="inner" classname="inner" time="0.02" status="run">
		<system-out>[==========] Running 2 test(s).
[  SKIPPED ] takes_hours
[       OK ] another
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] takes_hours
</system-out>
	</testcase>
	<testcase name="gpu" classname="gpu" time="0.00" status="notrun">
		<skipped message="SKIP_RETURN_CODE=77"/>
		<system-out>skipped: no GPU &amp; no driver
</system-out>
	</testcase>
	<testcase name="wrong" classname="wrong" time="0.03" status="fail">
		<failure message=""/>
		<system-out></system-out>
	</testcase>
	<testcase name="python" classname="python" time="9" status="run">
		<system-out>412 passed, 3 skipped in 99.10s (0:01:39)
</system-out>
	</testcase>
	<testcase name="plain" classname="plain" time="9" status="run">
		<system-out>9 passed in 1.00s; the word skipped alone
</system-out>
	</testcase>
</testsuite>
END
cat > "$work/want" << 'END'
SKIPPED: build: inner: takes_hours
SKIPPED: build: gpu: no GPU & no driver
FAILED: build: wrong
SKIPPED: build: python: 3 skipped by pytest
SKIPPED: aarch64: no emulator
4 passed, 1 failed, 4 skipped
END
sh "$summary" add "$work/summary" build "$work/junit.xml"
sh "$summary" note "$work/summary" skipped aarch64: no emulator
sh "$summary" note "$work/summary" passed soak
sh "$summary" print "$work/summary" > "$work/got"
diff "$work/want" "$work/got"
: > "$work/empty"
[ "$(sh "$summary" print "$work/empty")" = "0 passed, 0 failed, 0 skipped" ]
