"""An executor for tests: jobs run in the process of the test, so that what they did can be looked at."""

from harness.measure.workers.job import JobProcess


class InProcess:
    def prepare(self, device):
        pass

    def slots(self, device, exclusive):
        return 1

    def open(self, job):
        return _Worker(JobProcess(job))

    def close(self):
        pass


class _Worker:
    def __init__(self, process):
        self.measure = process

    def close(self, now):
        pass
