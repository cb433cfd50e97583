"""The commands, and the settings of each."""

from hiera_video.settings import evaluation, tools, training
from hiera_video.settings.base import Settings

COMMANDS: dict[str, type[Settings]] = {
    "finetune": training.FinetuneSettings,
    "evaluate": evaluation.EvaluateSettings,
    "predict": evaluation.PredictSettings,
    "pretrain": training.PretrainSettings,
    "visualize mae": evaluation.VisualizeSettings,
    "visualize attention": evaluation.AttentionSettings,
    "detect train": training.DetectTrainSettings,
    "detect evaluate": evaluation.DetectEvaluateSettings,
    "detect predict": evaluation.DetectPredictSettings,
    "detect score": evaluation.DetectScoreSettings,
    "instances train": training.InstancesTrainSettings,
    "instances evaluate": evaluation.InstancesEvaluateSettings,
    "instances predict": evaluation.InstancesPredictSettings,
    "instances score": evaluation.InstancesScoreSettings,
    "data build-lists": evaluation.BuildListsSettings,
    "data check-ava": evaluation.CheckAvaSettings,
    "extract": evaluation.ExtractSettings,
    "report": tools.ReportSettings,
    "export": tools.ExportSettings,
    "convert": tools.ConvertSettings,
    "flops": tools.FlopsSettings,
    "benchmark": tools.BenchmarkSettings,
    "doctor": tools.DoctorSettings,
    "demo": tools.DemoSettings,
    "demo ava": tools.DemoAvaSettings,
    "demo instances": tools.DemoInstancesSettings,
}
