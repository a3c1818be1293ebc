"""The folder of a run: its settings, its files, and how a user names what is in it."""

from search.run_folder.creation import BuildsTeacher, check_settings, create_run, keep_mentor
from search.run_folder.disk import FullDiskError, is_disk_full
from search.run_folder.files import (
    DATA,
    LIBRARY,
    MENTOR,
    START,
    SUPERNET,
    TEACHER,
    Files,
    SharedFolder,
    StorageError,
)
from search.run_folder.folder import OPTIONS, RunFolder, open_run, own_run, resume_run
from search.run_folder.settings import GRAFT, RunSettings, parse_shares
from search.run_folder.state import DONE, RunState
from search.run_folder.storage import Storage, open_files, storage_url
from search.run_folder.targets import load_target, run_and_id
from search.run_folder.teacher import TeacherFiles, read_teacher, write_teacher

__all__ = [
    "DATA",
    "DONE",
    "GRAFT",
    "LIBRARY",
    "MENTOR",
    "OPTIONS",
    "START",
    "SUPERNET",
    "TEACHER",
    "BuildsTeacher",
    "Files",
    "FullDiskError",
    "RunFolder",
    "RunSettings",
    "RunState",
    "SharedFolder",
    "Storage",
    "StorageError",
    "TeacherFiles",
    "check_settings",
    "create_run",
    "is_disk_full",
    "keep_mentor",
    "load_target",
    "open_files",
    "open_run",
    "own_run",
    "parse_shares",
    "read_teacher",
    "resume_run",
    "run_and_id",
    "storage_url",
    "write_teacher",
]
