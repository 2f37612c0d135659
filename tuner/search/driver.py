"""A search that is planned, run: study, Ray, the agenda's jobs, and what is concluded from them."""

import time
from collections.abc import Callable

from trainables.worker.loop import train_trial
from tuner.cluster.connection import connected, rays_folder, slots_for
from tuner.cluster.executor import run_on_ray
from tuner.cluster.slot import Slots
from tuner.cluster.staging import on_any_machine
from tuner.interrupts import interruptible, interrupting
from tuner.planning.plan import Plan
from tuner.request.arguments import honoured
from tuner.request.config import SearchConfig
from tuner.run_dir.mirror import Mirror
from tuner.run_dir.store import RunStore
from tuner.schedule.agenda import Agenda
from tuner.schedule.disk import trial_bytes
from tuner.schedule.jobs import TrialConfigs
from tuner.schedule.pool import require_pool
from tuner.search.conclusion import conclude, without_winner
from tuner.search.live import LivePage
from tuner.search.place import make_room
from tuner.search.progress import Progress
from tuner.search.provenance import Provenance
from tuner.search.session import Session
from tuner.search.wording import clock
from tuner.study.claim import claim, facts, require_untaken
from tuner.study.storage import PatientStorage, open_storage, readable
from tuner.study.study import SearchStudy
from tuner.study.trials import BASE, how_they_ended, role_of, state_of


def drive(plan: Plan, session: Session) -> None:
    """Runs a planned search to its last line.

    Args:
        plan: What is searched.
        session: Where it is kept, and where it speaks.

    Raises:
        Interrupted: It was told to end, or the machine cannot go on.
        RequestError: The study is another search's, or Ray cannot be had as asked.
        AllTrialsFailedError: No trial could be trained.
        BundleRefusedError: A library does not embed with the best model as training did; the search is finished.
    """
    config = plan.config.replace(guard=plan.guards)
    storage = PatientStorage(open_storage(config.storage, plan.run_dir), say=lambda line: session.warn([line]))
    study, mirror = _open_study(plan, storage), Mirror(session.store)
    with (
        session.ending_in_order(config),
        connected(config),
        session.ending_in_order(config, mirror),  # before Ray is shut down: `ray job stop` waits for 3 s
        interruptible() as interruption,
    ):
        storage.check = _checks(interruption, session.store)
        slots = slots_for(config, rays_folder(config, plan.run_dir))
        make_room(config, session.store, session.console)
        agenda = _new_agenda(plan, config, study, mirror, session, slots)
        _say_earlier(agenda, study, session)
        provenance = Provenance(study, config, slots)
        live = LivePage(agenda, study, config, session=session, mirror=mirror, provenance=provenance)
        with live:
            _run_jobs(agenda, plan, mirror, session, slots, live.watching(storage.check))
    _say_left_out(agenda, session)
    _conclude(config, study, agenda, mirror, session, live)


def _open_study(plan: Plan, storage: PatientStorage) -> SearchStudy:
    config = plan.config
    with readable(config.storage):
        if not config.resume:
            require_untaken(storage, config.study_name)
        lessons = [lesson.to_dict() for lesson in plan.lessons]
        study = SearchStudy(storage, config, space=plan.space, context=plan.context, lessons=lessons)
    claim(study.search, facts(config, plan.dataset))
    require_pool(study, plan.run_dir)
    return study


def _checks(interruption: Callable[[], None], store: RunStore) -> Callable[[], None]:
    """What ends a running search: a signal, or another search that has taken its place."""

    def check() -> None:
        interruption()
        store.require_held()

    return check


def _new_agenda(
    plan: Plan, config: SearchConfig, study: SearchStudy, mirror: Mirror, session: Session, slots: Slots
) -> Agenda:
    arguments, warnings = honoured(plan.arguments, gpu=slots.gpus > 0)
    session.warn(warnings)
    configs = TrialConfigs(
        search=config,
        run_dir=plan.run_dir,
        arguments=arguments,
        eval_data=plan.dataset.eval_data,
        keeps_stopped=not session.store.is_remote,
    )
    return Agenda(
        study,
        configs,
        trial_bytes=trial_bytes(plan.weights_bytes),
        mirror=mirror,
    )


def _run_jobs(
    agenda: Agenda, plan: Plan, mirror: Mirror, session: Session, slots: Slots, check: Callable[[], None]
) -> None:
    config = plan.config
    mirror.begin()
    check()
    with Progress(agenda, session.console, planned=config.num_trials, rungs=len(config.rungs)):
        train = session.train or train_trial
        work = on_any_machine(plan.arguments, config.model_name_or_path, session.store, train)
        run_on_ray(agenda, slots, check, train=work)
    check()  # a signal that came after the last turn of Tune's loop
    mirror.finish()
    check()
    if not agenda.has_winner:
        raise without_winner(agenda)


def _say_earlier(agenda: Agenda, study: SearchStudy, session: Session) -> None:
    """Says that a search goes on, so that nobody takes it for a new one."""
    if agenda.earlier:
        trials = study.search.get_trials(deepcopy=False)
        broken_off = sum(state_of(trial) == "running" and role_of(trial) != BASE for trial in trials)
        ended = how_they_ended(trials) + (f", {broken_off} interrupted, to go on" if broken_off else "")
        base = " (and the base model)" if any(row.role == BASE for row in agenda.earlier) else ""
        session.say(f"going on after {clock(study.spent)}: {ended}{base}")


def _say_left_out(agenda: Agenda, session: Session) -> None:
    if agenda.ended_early:
        session.say(f"patience: {agenda.ended_early}")
    session.warn([note for note in (agenda.left_out, agenda.passed_over) if note])


def _conclude(
    config: SearchConfig, study: SearchStudy, agenda: Agenda, mirror: Mirror, session: Session, live: LivePage
) -> None:
    store, by_patience = session.store, bool(agenda.ended_early)
    try:
        with session.ending_in_order(config), interrupting():  # again: Ray has put handlers of its own in place
            seconds = max(study.spent, time.monotonic() - session.started)
            conclude(config, store.local, session.console, seconds=seconds, by_patience=by_patience)
    finally:
        live.end()
        mirror.finish()
    if store.is_remote:
        session.say(f"kept in     {store.url}")
