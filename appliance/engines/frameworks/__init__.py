"""Frameworks that compute predictors on the CPU: scikit-learn, XGBoost, LightGBM, ONNX Runtime."""
